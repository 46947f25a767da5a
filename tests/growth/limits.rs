//! How far a curve goes.

use crate::growth::limits::*;
#[test]
fn the_limit_is_the_last_point_and_says_its_reason() {
    let limit = Limit::of(20_400, 1 << 40);
    let (places, reason) = limit.cut(&[100, 7_000, 20_000, 50_000]);
    assert_eq!(places, [100, 7_000, 10_000]);
    assert!(reason.contains("10,000") && reason.contains("20,400 files"), "{reason}");
    let (places, reason) = limit.cut(&[100, 9_000, 20_000]);
    assert_eq!(places, [100, 10_000], "9,000 is too near");
    assert!(reason.contains("files"), "{reason}");
    assert_eq!(limit.cut(&[100, 9_000]).0, [100, 9_000]);
    let (places, reason) = Limit::of(u64::MAX, 1 << 30).cut(&[100, 50_000]);
    assert_eq!(places, [100, 6_553]);
    assert!(reason.contains("1.0 GiB"), "{reason}");
}
