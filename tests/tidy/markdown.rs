//! The pages of the repository as text: which there are, their prose, their code, their links and their headings.
//!
//! Not here: what is to be checked, see `pages` and `reference`. Understands as much of Markdown as the pages use.
//! Always holds: a link or a heading in a block of code is neither.

use std::path::{Path, PathBuf};

/// A page, with its path from the root of the repository.
pub(crate) struct Page {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

/// A target that a page names, as it stands there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) line: usize,
    pub(crate) target: String,
}

impl Page {
    /// The lines that are no code, with their numbers.
    pub(crate) fn prose(&self) -> impl Iterator<Item = (usize, &str)> {
        lines(&self.text).filter(|line| !line.is_code).map(|line| (line.number, line.text))
    }

    /// The commands in blocks of code, continued lines joined.
    pub(crate) fn commands(&self) -> Vec<(usize, String)> {
        let mut commands: Vec<(usize, String)> = Vec::new();
        let mut goes_on = false;
        for line in lines(&self.text).filter(|line| line.is_code) {
            let (text, continued) = match line.text.trim_end().strip_suffix('\\') {
                Some(text) => (text, true),
                None => (line.text, false),
            };
            match commands.last_mut() {
                Some((_, command)) if goes_on => command.push_str(text),
                _ => commands.push((line.number, text.to_owned())),
            }
            goes_on = continued;
        }
        commands
    }

    /// What stands between backquotes in the prose.
    pub(crate) fn code_spans(&self) -> Vec<(usize, &str)> {
        self.prose().flat_map(|(number, line)| super::code_spans(line).map(move |span| (number, span))).collect()
    }

    /// Whatever is linked or shown: links and pictures in Markdown, and `src`, `srcset` and `href` in HTML.
    pub(crate) fn links(&self) -> Vec<Link> {
        let mut links = Vec::new();
        for (number, line) in self.prose() {
            let line = without_code(line);
            let targets = line.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
            let html = ["src=\"", "srcset=\"", "href=\""].into_iter().flat_map(|attribute| {
                line.split(attribute).skip(1).filter_map(|rest| rest.split_once('"')).map(|(target, _)| target)
            });
            links.extend(targets.chain(html).map(|target| Link { line: number, target: target.to_owned() }));
        }
        links
    }

    /// What a link to a place in the page may name: its headings, as GitHub names them, and anchors in HTML.
    pub(crate) fn anchors(&self) -> Vec<String> {
        let mut anchors: Vec<String> = Vec::new();
        for (_, line) in self.prose() {
            for rest in ["id=\"", "name=\""].into_iter().flat_map(|attribute| line.split(attribute).skip(1)) {
                anchors.extend(rest.split_once('"').map(|(name, _)| name.to_owned()));
            }
            let level = line.chars().take_while(|char| *char == '#').count();
            if (1..=6).contains(&level) && line[level..].starts_with(' ') {
                let slug = slug(&line[level..]);
                let again = anchors.iter().filter(|anchor| is_numbered(anchor, &slug)).count();
                anchors.push(if again == 0 { slug } else { format!("{slug}-{again}") });
            }
        }
        anchors
    }

    /// The page or file that a link leads to, from the root of the repository, and the place in it; `None` for the web.
    pub(crate) fn resolve(&self, target: &str) -> Option<(PathBuf, Option<String>)> {
        if target.contains("://") || target.starts_with("mailto:") {
            return None;
        }
        let (path, place) = match target.split_once('#') {
            Some((path, place)) => (path, Some(place.to_owned())),
            None => (target, None),
        };
        if path.is_empty() {
            return Some((self.path.clone(), place));
        }
        let mut resolved: PathBuf = self.path.parent().map(Path::to_owned).unwrap_or_default();
        for part in Path::new(path).components() {
            match part {
                std::path::Component::ParentDir => {
                    resolved.pop();
                }
                std::path::Component::CurDir => {}
                other => resolved.push(other),
            }
        }
        Some((resolved, place))
    }
}

/// The name that GitHub gives to a heading.
pub(crate) fn slug(heading: &str) -> String {
    // Of a link, the text counts.
    let mut text = String::new();
    let mut rest = heading;
    while let Some((before, link)) = rest.split_once('[') {
        text.push_str(before);
        match link.split_once("](").and_then(|(name, after)| Some((name, after.split_once(')')?.1))) {
            Some((name, after)) => {
                text.push_str(name);
                rest = after;
            }
            None => rest = link,
        }
    }
    text.push_str(rest);
    text.trim()
        .to_lowercase()
        .chars()
        .filter_map(|char| match char {
            ' ' => Some('-'),
            char if char.is_alphanumeric() || matches!(char, '-' | '_') => Some(char),
            _ => None,
        })
        .collect()
}

fn is_numbered(anchor: &str, slug: &str) -> bool {
    anchor.strip_prefix(slug).is_some_and(|rest| {
        rest.is_empty() || rest.strip_prefix('-').is_some_and(|number| number.parse::<usize>().is_ok())
    })
}

struct Line<'a> {
    number: usize,
    text: &'a str,
    is_code: bool,
}

/// Code is what stands between fences, and what is indented by four or more below a blank line.
fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    let mut fence: Option<&str> = None;
    let mut blank_before = true;
    let mut indented = false;
    text.lines().enumerate().filter_map(move |(index, text)| {
        let trimmed = text.trim_start();
        let mark = ["```", "~~~"].into_iter().find(|mark| trimmed.starts_with(mark));
        match (fence, mark) {
            (None, Some(mark)) => {
                fence = Some(mark);
                return None;
            }
            (Some(open), Some(mark)) if open == mark => {
                fence = None;
                return None;
            }
            _ => {}
        }
        indented = text.starts_with("    ") && (indented || blank_before) && !trimmed.starts_with(['-', '*']);
        blank_before = trimmed.is_empty();
        Some(Line { number: index + 1, text, is_code: fence.is_some() || indented })
    })
}

fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("`")
}

#[test]
fn links_and_headings_are_found_and_code_is_not() {
    let page = Page {
        path: "docs/a.md".into(),
        text: "# A `b`: c\n[x](y.md#z) `[no](no.md)` ![p](../p.png)\n```sh\n[no](no.md)\n# no\na \\\n  --b\n```\n## Who, me?\n## Who, me?\n<img src=\"q.png\"/>\n".into(),
    };
    let targets: Vec<_> = page.links().into_iter().map(|link| (link.line, link.target)).collect();
    let expected = [(2, "y.md#z"), (2, "../p.png"), (11, "q.png")].map(|(line, target)| (line, target.to_owned()));
    assert_eq!(targets, expected);
    assert_eq!(page.anchors(), ["a-b-c", "who-me", "who-me-1"]);
    assert_eq!(page.resolve("y.md#z"), Some(("docs/y.md".into(), Some("z".into()))));
    assert_eq!(page.resolve("../p.png"), Some(("p.png".into(), None)));
    assert_eq!(page.resolve("#z"), Some(("docs/a.md".into(), Some("z".into()))));
    assert_eq!(page.resolve("https://a/b"), None);
    assert_eq!(page.commands(), [(4, "[no](no.md)".into()), (5, "# no".into()), (6, "a   --b".to_owned())]);
    assert_eq!(slug("What [it](x.md) costs"), "what-it-costs");
}
