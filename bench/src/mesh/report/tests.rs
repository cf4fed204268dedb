//! The verdict, on measurements that are made up.

use super::*;

fn drain(system: System, cell: Cell, per_second: f64, cpu: f64, rss: f64) -> Outcome {
    let own = |figure: f64| system.is_own().then_some(figure);
    let measured = Measured::Drain {
        amount: 1_000_000,
        seconds: 1e6 / per_second,
        per_second,
        publisher_cpu_s: cpu / 2.0,
        subscriber_cpu_s: cpu / 2.0,
        agents_cpu_s: own(0.3),
        agent_rss_mb: own(rss),
    };
    Outcome::new(system, cell, 1, Ok(measured))
}

fn said(outcomes: &[Outcome], cell: Cell) -> String {
    judge(outcomes, &[cell], 1).to_string()
}

#[test]
fn each_figure_is_held_against_the_best_native_setting() {
    let with = |per_second, cpu, rss| {
        let natives = [
            drain(System::Native, Cell::Update, 100_000.0, 12.0, 0.0),
            drain(System::NativeStreaming, Cell::Update, 110_000.0, 14.0, 0.0),
        ];
        let own = drain(System::Antiphon, Cell::Update, per_second, cpu, rss);
        said(&natives.into_iter().chain([own]).collect::<Vec<_>>(), Cell::Update)
    };
    assert_eq!(with(220_000.0, 7.2, 50.0), "all goals are met");
    assert!(with(210_000.0, 7.2, 50.0).contains("1.909 times native's rate, goal 2"));
    assert!(with(220_000.0, 7.3, 50.0).contains("0.608 times native's CPU time, goal 0.6"));
    assert!(with(220_000.0, 7.2, 200.0).contains("200.000 MB of memory"));
}

#[test]
fn what_may_not_be_joined_is_held_against_the_same_transactions() {
    let native = || drain(System::Native, Cell::Small, 40_000.0, 20.0, 0.0);
    let own = |per_second| drain(System::Antiphon, Cell::Unjoined, per_second, 90.0, 10.0);
    assert_eq!(said(&[native(), own(40_000.0)], Cell::Unjoined), "all goals are met");
    assert!(said(&[native(), own(39_000.0)], Cell::Unjoined).contains("0.975 times native's rate"));
}

#[test]
fn lag_writers_and_the_hot_row_have_goals_of_their_own() {
    let own = |cell, measured| said(&[Outcome::new(System::Antiphon, cell, 1, Ok(measured))], cell);
    let lag = |p50_ms, p99_ms| {
        let measured =
            Measured::Lag { probes: 200, per_second: 500.0, p50_ms, p90_ms: 1.0, p99_ms, max_ms: 99.0 };
        own(Cell::Lag, measured)
    };
    assert_eq!(lag(0.9, 29.0), "all goals are met");
    assert!(lag(1.0, 30.0).contains("ms at p50") && lag(1.0, 30.0).contains("ms at p99"));
    let race = |missed| own(Cell::Race, Measured::Race { updates: 1000, missed, conflicts: Some(3) });
    assert_eq!(race(0), "all goals are met");
    assert!(race(1).contains("1.000 updates missed"));
    let writers = |rate_ratio| {
        let measured =
            Measured::Writers { without_per_second: 1e4, with_per_second: 1e4, rate_ratio, cpu_ratio: 1.0 };
        own(Cell::WritersReplace, measured)
    };
    assert_eq!(writers(0.97), "all goals are met");
    assert!(writers(0.96).contains("0.960 of the rate without"));
}

#[test]
fn silence_meets_no_goal() {
    assert_eq!(judge(&[], &[Cell::Small], 1).code(), 2);
    let own = || drain(System::AntiphonOneWay, Cell::Small, 9.0, 1.0, 1.0);
    assert!(said(&[own()], Cell::Small).contains("- times native's rate"));
    let failed = Outcome::new(System::Antiphon, Cell::Lag, 1, Err(anyhow::anyhow!("no")));
    assert!(said(&[failed], Cell::Lag).contains("0 of 1 rounds"));
}

#[test]
fn tables_show_what_was_measured() {
    let outcomes = [
        drain(System::Native, Cell::Insert, 200_000.0, 8.0, 0.0),
        drain(System::Antiphon, Cell::Insert, 400_000.0, 4.0, 31.0),
    ];
    let tables = tables(&outcomes);
    assert!(tables.contains("2.00 x") && tables.contains("0.50 x") && tables.contains("31"), "{tables}");
    assert!(!tables.contains("pglogical") && !tables.contains("lag"), "{tables}");
}
