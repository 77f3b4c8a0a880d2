use super::*;

fn check(labels: &[&str]) -> Result<BTreeMap<String, String>, String> {
    let pairs: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
    validate(&pairs).map_err(|error| error.to_string())
}

#[test]
fn labels_that_a_node_may_set() {
    let labels = [
        "role=worker",
        "example.com/role=worker",
        "notkubernetes.io/a=b",
        "topology.kubernetes.io/zone=a",
        "kubernetes.io/hostname=n",
        "node.kubernetes.io/anything=",
        "deep.kubelet.kubernetes.io/anything=x",
    ];
    assert_eq!(check(&labels).map(|labels| labels.len()), Ok(labels.len()));
}

#[test]
fn others_of_kubernetes_are_refused_at_the_start_in_the_words_of_the_kubelet() {
    let refused = check(&["node-role.kubernetes.io/worker=", "a=b", "x.k8s.io/y=1", "kubernetes.io/role=r"]);
    let expected = "unknown 'kubernetes.io' or 'k8s.io' labels specified with --node-labels: \
         [kubernetes.io/role node-role.kubernetes.io/worker x.k8s.io/y]\n\
         --node-labels in the 'kubernetes.io' namespace must begin with an allowed prefix \
         (kubelet.kubernetes.io, node.kubernetes.io) or be in the specifically allowed set \
         (beta.kubernetes.io/arch, beta.kubernetes.io/instance-type, beta.kubernetes.io/os, \
         failure-domain.beta.kubernetes.io/region, failure-domain.beta.kubernetes.io/zone, kubernetes.io/arch, \
         kubernetes.io/hostname, kubernetes.io/os, node.kubernetes.io/instance-type, topology.kubernetes.io/region, \
         topology.kubernetes.io/zone)";
    assert_eq!(refused, Err(expected.to_owned()));
    for label in ["node-restriction.kubernetes.io/a=b", "mynode.kubernetes.io/a=b"] {
        assert!(check(&[label]).is_err(), "{label}");
    }
}

#[test]
fn what_is_no_label_is_refused() {
    for pair in ["a", "-a=b", "a/b/c=d", "a=-", "UPPER.example/a=b"] {
        let expected =
            format!("setting nodeLabels: \"{pair}\" is not a label such as topology.kubernetes.io/zone=a");
        assert_eq!(check(&[pair]), Err(expected));
    }
}
