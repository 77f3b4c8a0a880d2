use super::{Answer, Request, execute};

fn run(script: &str) -> (Vec<String>, Answer) {
    let request = Request {
        id: 3,
        command: vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()],
        environment: vec![("WORD".to_owned(), "spoken".to_owned())],
        limit_seconds: 1,
    };
    let mut lines = Vec::new();
    let answer = execute(&request, |line| {
        lines.push(line);
        Ok(())
    });
    (lines, answer.expect("the command ran"))
}

#[test]
fn both_outputs_come_in_order_and_the_code_at_the_end() {
    let (lines, answer) = run("echo one; echo two $WORD >&2; printf last; exit 7");
    assert_eq!(lines, ["one", "two spoken", "last"]);
    assert_eq!(answer, Answer::Ended { id: 3, code: Some(7) });
}

#[test]
fn a_command_that_does_not_end_is_ended() {
    let (lines, answer) = run("echo begun; exec sleep 1000");
    assert_eq!(lines, ["begun"]);
    assert_eq!(answer, Answer::Ended { id: 3, code: Some(124) });
}
