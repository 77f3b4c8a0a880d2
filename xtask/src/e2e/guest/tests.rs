use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::Guest;

fn guest(program: &str, arguments: &[&str]) -> Guest {
    let mut command = Command::new(program);
    command.args(arguments);
    Guest::start(command, PathBuf::new()).expect("it starts")
}

#[test]
fn the_power_of_a_machine_that_runs_or_is_off_can_be_cut() {
    let mut running = guest("sleep", &["1000"]);
    running.cut().expect("it ran");
    running.cut().expect("it was cut before");
    let mut off = guest("true", &[]);
    off.wait_off(Duration::from_secs(10)).expect("it went off by itself");
    off.cut().expect("it was off");
}
