//! Which media type an `Accept` header gets.

use super::*;

#[test]
fn openapi_v2_comes_as_the_client_prefers() {
    let protobuf = Some(gnostic::MEDIA_TYPE);
    let cases = [
        ("", Some(JSON)),
        ("*/*", Some(JSON)),
        ("application/json", Some(JSON)),
        ("application/json;charset=utf-8, */*", Some(JSON)),
        ("application/com.github.proto-openapi.spec.v2.v1.0+protobuf", protobuf),
        ("application/com.github.proto-openapi.spec.v2@v1.0+protobuf", protobuf),
        ("application/json;q=0.5, application/com.github.proto-openapi.spec.v2@v1.0+protobuf", protobuf),
        (
            "application/com.github.proto-openapi.spec.v2@v1.0+protobuf;q=0.1,application/json;q=0.9",
            Some(JSON),
        ),
        ("application/com.github.proto-openapi.spec.v2@v1.0+protobuf, application/json", protobuf),
        ("application/json;q=0", None),
        ("text/html", None),
        ("application/vnd.kubernetes.protobuf", None),
    ];
    for (accept, wanted) in cases {
        assert_eq!(open_api_v2_type(accept), wanted, "{accept}");
    }
}
