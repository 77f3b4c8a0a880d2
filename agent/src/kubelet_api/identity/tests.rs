use super::Caller;

#[test]
fn only_the_api_server_and_masters_may_call() {
    let cases = [
        ("kube-apiserver-kubelet-client", &[][..], true),
        ("admin", &["system:masters"][..], true),
        ("system:node:a", &["system:nodes"][..], false),
        ("", &[][..], false),
        ("system:masters", &["kube-apiserver-kubelet-client"][..], false),
    ];
    for (user, groups, may) in cases {
        let caller =
            Caller { user: user.into(), groups: groups.iter().map(|group| (*group).into()).collect() };
        assert_eq!(caller.may_call(), may, "{caller:?}");
    }
}

#[test]
fn without_a_certificate_nobody_is_calling() {
    assert_eq!(Caller::of_certificates(None), Caller::default());
}
