use super::*;

fn shares() -> Shares {
    Shares {
        whole: 120.0,
        schedule: 4.0,
        wait: 1.0,
        volumes: 0.0,
        image: 0.0,
        sandbox: Operation { phase: 60.0, done: 50.0 },
        network: 20.0,
        shim: 25.0,
        cgroup: 6.0,
        create: Operation { phase: 10.0, done: 7.0 },
        start: Operation { phase: 30.0, done: 29.0 },
        status: 9.0,
    }
}

#[test]
fn the_rows_add_up_to_the_whole() {
    let rows = shares().rows();
    assert_eq!(rows.iter().map(|(_, time)| time).sum::<f64>(), 120.0);
    let row = |name: &str| rows.iter().find(|(row, _)| row.starts_with(name)).unwrap().1;
    assert_eq!(row("sandbox: the rest"), 5.0);
    // 100 of phases, 92 of operations.
    assert_eq!(row("between the steps"), 8.0);
    assert_eq!(row("unexplained"), 6.0);
}

#[test]
fn a_cell_is_a_time_and_its_share() {
    assert_eq!(cell(&shares().rows(), 0), "4.0 ms, 3 %");
    assert_eq!(cell(&[], 0), "0.0 ms, 0 %");
}
