//! Figures of points, and numbers as text.

use crate::growth::data::*;
const LOAD: Load = Load { connections: 100, watches: 10, ranges: 1, keys: 0, rate: 10.0, value_size: 256, leaves: 0 };

#[test]
fn figures_are_medians_per_item() {
    let sample =
        |cpu_us| Sample { writes: 10.0, deliveries: 10_000.0, cpu_us, grown_kib: Some(800.0), ..Sample::default() };
    let series = Series { samples: vec![sample(30_000.0), sample(10_000.0), sample(20_000.0)], failed: Vec::new() };
    let point = Point { x: 100.0, load: LOAD, series: [("relay".to_owned(), series)].into() };
    let spread = |median, least, most| Some(Spread { median, least, most });
    assert_eq!(point.figure("relay", Metric::CpuPerDelivery), spread(2.0, 1.0, 3.0));
    assert_eq!(point.figure("relay", Metric::CpuPerWrite), spread(2000.0, 1000.0, 3000.0));
    assert_eq!(point.figure("relay", Metric::MemoryPerConnection), spread(8.0, 8.0, 8.0));
    assert_eq!(point.figure("relay", Metric::MemoryPerWatch), spread(819.2, 819.2, 819.2));
    assert_eq!(point.figure("relay", Metric::Delay99), None, "not measured");
    assert_eq!(point.figure("etcd", Metric::CpuPerDelivery), None, "not run");
}

#[test]
fn a_write_reaches_one_watch_if_each_has_a_key_of_its_own() {
    assert_eq!((LOAD.deliveries(), LOAD.reached()), (1000.0, 100.0));
    let distinct = Load { ranges: 0, ..LOAD };
    assert_eq!((distinct.deliveries(), distinct.reached()), (1.0, 1.0));
}

#[test]
fn numbers_have_three_digits_or_groups() {
    let numbers = [0.0, 0.00012, 0.1234, 1.234, 12.34, 123.4, 1234.0, 12_345.0, 1_234_567.0];
    assert_eq!(numbers.map(shown), ["0", "0.0001", "0.123", "1.23", "12.3", "123", "1234", "12,345", "1,234,567"]);
}
