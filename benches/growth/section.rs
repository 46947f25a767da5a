//! Sections of a page that programs write, between marks.

/// The name of the section with the curves.
pub const GROWTH: &str = "growth";

/// The section of a page, with its marks; nothing if the page has none.
pub fn kept(page: &str, name: &str) -> Option<String> {
    let (begin, end) = marks(name);
    let from = page.find(&begin)?;
    let to = page[from..].find(&end)? + from + end.len();
    Some(page[from..to].to_owned())
}

fn marks(name: &str) -> (String, String) {
    (format!("<!-- {name}: written by `make bench ARGS=--curves` -->"), format!("<!-- end of {name} -->"))
}

/// The page with this text as its section, at the end if the page has none yet.
pub fn replaced(page: &str, name: &str, text: &str) -> String {
    let (begin, end) = marks(name);
    let section = format!("{begin}\n\n{}\n\n{end}", text.trim());
    match kept(page, name) {
        Some(old) => page.replacen(&old, &section, 1),
        None => format!("{}\n\n{section}\n", page.trim_end()),
    }
}
