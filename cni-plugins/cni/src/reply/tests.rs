//! What error documents say of several errors.

use super::ErrorReply;

#[test]
fn an_undo_is_told_beside_the_details() {
    let error = ErrorReply::internal("no").with_details("because");
    let nothing: [&str; 0] = [];
    assert_eq!(error.clone().with_undo(nothing), error);
    assert_eq!(error.with_undo(["link", "lease"]).details, "because; undo: link; lease");
    assert_eq!(ErrorReply::internal("no").with_undo(["link"]).details, "undo: link");
}

#[test]
fn the_first_error_tells_the_others() {
    assert_eq!(ErrorReply::first_of([Ok(()), Ok(())]), Ok(()));
    let (first, second) = (ErrorReply::new(7, "first"), ErrorReply::internal("second").with_details("why"));
    assert_eq!(ErrorReply::first_of([Ok(()), Err(second.clone())]), Err(second.clone()));
    let told = ErrorReply::first_of([Err(first), Ok(()), Err(second), Err(ErrorReply::internal("third"))]);
    let expected = ErrorReply::new(7, "first").with_details("also: second; why; also: third");
    assert_eq!(told, Err(expected));
}
