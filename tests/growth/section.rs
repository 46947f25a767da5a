//! Replacing a section of a page.

use crate::growth::section::*;
#[test]
fn only_the_section_is_replaced() {
    let page = "# Title\n\nBefore.\n";
    let once = replaced(page, GROWTH, "one\n");
    assert!(once.starts_with("# Title\n\nBefore.\n\n<!-- growth") && once.contains("\n\none\n\n"), "{once}");
    let twice = replaced(&format!("{once}\nAfter.\n"), GROWTH, "two");
    assert!(twice.contains("two") && !twice.contains("one") && twice.ends_with("\nAfter.\n"), "{twice}");
    assert_eq!(kept(page, GROWTH), None);
    assert!(kept(&twice, GROWTH).is_some_and(|kept| kept.contains("two") && !kept.contains("After")));
}
