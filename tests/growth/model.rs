//! The model finds the costs that made the data, and predicts what it was not fitted on.

use std::collections::BTreeMap;

use crate::growth::{data::*, model::*};

const LOAD: Load = Load { connections: 100, watches: 1, ranges: 1, keys: 0, rate: 100.0, value_size: 256, leaves: 0 };

/// A curve whose relay costs what the terms say, with these costs.
fn curve(loads: &[Load], costs: [f64; 11]) -> Measured {
    let point = |load: &Load| {
        let series = |label: &str| {
            let tls = label.contains("TLS");
            let work = Work { load: *load, tls, interval: 1.0 / load.rate };
            let cpu_us = cpu_terms(&work).iter().zip(costs).map(|(term, cost)| term * cost).sum();
            let sample = Sample {
                writes: 1.0,
                deliveries: load.deliveries(),
                cpu_us,
                idle_mib: Some(10.0 + load.keys as f64 / 1024.0),
                grown_kib: Some(8.0 * load.connections as f64 + (load.connections * (load.watches - 1)) as f64),
                opening_cpu_us: Some(100.0 * load.connections as f64),
                ..Sample::default()
            };
            (label.to_owned(), Series { samples: vec![sample], failed: Vec::new() })
        };
        Point { x: load.connections as f64, load: *load, series: BTreeMap::from(["relay", "relay, TLS"].map(series)) }
    };
    Measured { taken: String::new(), ended_by: String::new(), points: loads.iter().map(point).collect() }
}

#[test]
fn costs_that_made_the_curves_are_found_and_predict_the_other_half() {
    let costs = [500.0, 40.0, 80.0, 4.0, 0.5, 0.3, 0.1, 0.2, 1.5, 0.7, 0.4];
    let with = |connections, watches, ranges, keys, rate, value_size| Load {
        connections,
        watches,
        ranges,
        keys,
        rate,
        value_size,
        leaves: 0,
    };
    let twice = |loads: Vec<Load>| loads.into_iter().flat_map(|load| [load, Load { rate: load.rate * 2.0, ..load }]);
    let loads: Vec<Load> = twice(vec![
        LOAD,
        with(1_000, 1, 1, 1_000, 20.0, 256),
        with(9_000, 1, 1, 0, 2.0, 256),
        with(100, 64, 1, 100_000, 5.0, 256),
        with(100, 1_000, 1, 0, 2.0, 256),
        with(100, 1, 1, 0, 10.0, 65_536),
        with(1_000, 1, 500, 0, 10.0, 256),
        with(100, 10, 0, 0, 1_000.0, 256),
        with(100, 1_000, 0, 0, 500.0, 1_024),
    ])
    .collect();
    let data = Data { curves: [("made up".to_owned(), curve(&loads, costs))].into() };
    let model = Model::of(&data).expect("enough points");
    for (found, cost) in model.cpu.costs.iter().zip(costs) {
        assert!((found.value - cost).abs() <= 0.02 * cost, "{found:?} instead of {cost}");
    }
    let errors = model.cpu.errors(false).expect("a second half");
    assert!(errors.count == 18 && errors.most < 0.02 && errors.within == 18, "{errors:?}");
    let point = &data.curves["made up"].points[3];
    let predicted = model.predict("relay", Metric::CpuPerDelivery, point).expect("a relay");
    let measured = point.figure("relay", Metric::CpuPerDelivery).expect("measured").median;
    assert!((predicted / measured - 1.0).abs() < 0.02, "{predicted} {measured}");
    assert_eq!(model.predict("etcd", Metric::CpuPerDelivery, point), None, "it is about relays");
    assert!(model.idle.errors(false).is_some_and(|errors| errors.most < 0.01));
}

#[test]
fn too_few_points_make_no_model() {
    let data = Data { curves: [("one".to_owned(), curve(&[LOAD], [1.0; 11]))].into() };
    assert!(Model::of(&data).is_none());
}
