use super::*;

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

#[test]
fn a_machines_pid_1_is_known_by_its_arguments() {
    let folder = init_folder(&words("/c/target/debug/xtask machine init /c/target/up/nodes/node-1"));
    assert_eq!(folder, Some(PathBuf::from("/c/target/up/nodes/node-1")));
    assert_eq!(init_folder(&words("/c/target/debug/xtask machine start /c/target/up/nodes/node-1")), None);
    assert_eq!(init_folder(&words("orlop-agent --node-name node-1")), None);
    assert_eq!(init_folder(&[]), None);
}
