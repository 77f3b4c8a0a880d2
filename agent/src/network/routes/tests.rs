use std::io;

use super::*;

#[tokio::test]
async fn a_socket_that_the_kernel_refuses_is_asked_for_again_after_each_pause() {
    let mut refusals = 3;
    let mut pauses = 0;
    let open = || {
        if refusals == 0 {
            return Ok("opened");
        }
        refusals -= 1;
        Err(netlink::Error::Open { error: io::ErrorKind::OutOfMemory.into() })
    };
    let counted = std::iter::repeat(Duration::ZERO).inspect(|_| pauses += 1);
    assert_eq!(opened(open, counted).await, "opened");
    assert_eq!((refusals, pauses), (0, 3));
}
