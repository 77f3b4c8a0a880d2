//! Roles and bindings: as written and listed, what they grant, who may grant, and what a start makes of them.

use bytes::Bytes;
use serde_json::{Value, json};

use super::client::{Answer, Server, User, request, server, server_in};
use apiserver::pki::Identity;

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const ANN: User<'static> = User { name: "ann", group: None };

fn local(plural: &str) -> String {
    format!("{RBAC}/namespaces/default/{plural}")
}

fn role(name: &str, verbs: &[&str], resources: &[&str]) -> Value {
    json!({"metadata": {"name": name}, "rules": [{"verbs": verbs, "apiGroups": [""], "resources": resources}]})
}

fn binding(name: &str, role: (&str, &str), user: &str) -> Value {
    json!({"metadata": {"name": name}, "roleRef": {"kind": role.0, "name": role.1},
        "subjects": [{"kind": "User", "name": user}]})
}

impl Server {
    async fn asked_by(&self, user: &User<'_>, method: &str, path: &str, body: &Value) -> Answer {
        let bytes = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        let media = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        self.send_as(user, request(method, path, media, bytes)).await
    }

    /// Creates what a test needs, as administrator.
    async fn make(&self, path: &str, object: &Value) {
        let made = self.post(path, object).await;
        assert_eq!(made.code, 201, "{}", made.body);
    }

    /// The status of a review by a user.
    async fn reviewed(&self, user: &User<'_>, plural: &str, spec: Value) -> Value {
        let path = format!("/apis/authorization.k8s.io/v1/{plural}");
        let answer = self.asked_by(user, "POST", &path, &json!({"spec": spec})).await;
        assert_eq!(answer.code, 201, "{}", answer.body);
        answer.body["status"].clone()
    }
}

#[tokio::test]
async fn a_binding_grants_until_it_is_deleted() {
    let server = server().await;
    let pods = "/api/v1/namespaces/default/pods";
    let denied = server.asked_by(&ANN, "GET", pods, &Value::Null).await;
    let sentence = "pods is forbidden: User \"ann\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"";
    assert_eq!((denied.code, denied.message()), (403, sentence));
    server.make(&local("rolebindings"), &binding("b", ("Role", "r"), "ann")).await;
    let missing = format!("{sentence}: RBAC: role.rbac.authorization.k8s.io \"r\" not found");
    assert_eq!(server.asked_by(&ANN, "GET", pods, &Value::Null).await.message(), missing);
    server.make(&local("roles"), &role("r", &["list"], &["pods"])).await;
    assert_eq!(server.asked_by(&ANN, "GET", pods, &Value::Null).await.code, 200);
    assert_eq!(server.asked_by(&ANN, "GET", "/api/v1/pods", &Value::Null).await.code, 403, "elsewhere");
    assert_eq!(server.asked_by(&ANN, "DELETE", pods, &Value::Null).await.code, 403, "another verb");
    assert_eq!(server.delete(&format!("{}/b", local("rolebindings"))).await.code, 200);
    assert_eq!(server.asked_by(&ANN, "GET", pods, &Value::Null).await.code, 403);
}

#[tokio::test]
async fn one_object_is_listed_by_its_name() {
    let server = server().await;
    let mut named = role("r", &["list", "get"], &["configmaps"]);
    named["rules"][0]["resourceNames"] = json!(["mine"]);
    server.make(&local("roles"), &named).await;
    server.make(&local("rolebindings"), &binding("b", ("Role", "r"), "ann")).await;
    let maps = "/api/v1/namespaces/default/configmaps";
    for (query, code) in [
        ("", 403),
        ("?fieldSelector=metadata.name%3Dmine", 200),
        ("?fieldSelector=metadata.name%3Dyours", 403),
    ] {
        let answer = server.asked_by(&ANN, "GET", &format!("{maps}{query}"), &Value::Null).await;
        assert_eq!(answer.code, code, "{query}: {}", answer.body);
    }
}

#[tokio::test]
async fn paths_are_granted_like_upstreams() {
    let server = server().await;
    let monitor = User { name: "m", group: Some("system:monitoring") };
    for (user, path, code) in [
        (&ANN, "/version", 200),
        (&ANN, "/apis", 200),
        (&ANN, "/apis/apps/v1", 200),
        (&ANN, "/openapi/v3", 200),
        (&ANN, "/metrics", 403),
        (&ANN, "/nothing", 403),
        (&monitor, "/metrics", 200),
        (&monitor, "/orlop/v1/store/backup", 403),
    ] {
        assert_eq!(server.asked_by(user, "GET", path, &Value::Null).await.code, code, "{} {path}", user.name);
    }
    let denied = server.asked_by(&ANN, "GET", "/metrics", &Value::Null).await;
    assert_eq!(denied.message(), "forbidden: User \"ann\" cannot get path \"/metrics\"");
    assert_eq!(server.delete(&format!("{RBAC}/clusterrolebindings/system:discovery")).await.code, 200);
    assert_eq!(server.asked_by(&ANN, "GET", "/apis", &Value::Null).await.code, 403, "by the binding alone");
}

#[tokio::test]
async fn bad_roles_and_bindings_get_upstreams_words() {
    let server = server().await;
    server.make(&local("rolebindings"), &binding("b:c", ("Role", "r"), "ann")).await;
    let changed = json!({"roleRef": {"name": "other"}});
    let refused = server.patch(&format!("{}/b:c", local("rolebindings")), "merge", &changed).await;
    let role_ref = "{\"apiGroup\":\"rbac.authorization.k8s.io\",\"kind\":\"Role\",\"name\":\"other\"}";
    let group = "rbac.authorization.k8s.io";
    assert_eq!(
        refused.message(),
        format!(
            "RoleBinding.{group} \"b:c\" is invalid: roleRef: Invalid value: {role_ref}: cannot change roleRef"
        )
    );
    let refused = server.post(&local("roles"), &role("a%", &["get"], &["pods"])).await;
    let words =
        format!("Role.{group} \"a%\" is invalid: metadata.name: Invalid value: \"a%\": may not contain '%'");
    assert_eq!((refused.code, refused.message()), (422, words.as_str()));
}

#[tokio::test]
async fn roles_are_described_and_printed() {
    let server = server().await;
    let resources = server.get(RBAC).await.body["resources"].clone();
    let names: Vec<&Value> = resources.as_array().unwrap().iter().map(|resource| &resource["name"]).collect();
    assert_eq!(names, ["clusterrolebindings", "clusterroles", "rolebindings", "roles"]);
    assert!(resources.as_array().unwrap().iter().all(|resource| resource.get("shortNames").is_none()));
    let mut table =
        request("GET", &format!("{RBAC}/clusterrolebindings/system:node-proxier"), "", Bytes::new());
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    table.headers_mut().insert("accept", accept.parse().unwrap());
    let table = server.send(Some(Identity::Admin), table).await.body;
    let cells = table["rows"][0]["cells"].as_array().unwrap();
    assert_eq!(cells[..2], ["system:node-proxier", "ClusterRole/system:node-proxier"]);
    assert_eq!(cells[3..], ["system:kube-proxy", "", ""]);
}

#[tokio::test]
async fn nobody_grants_a_role_that_they_do_not_hold() {
    let server = server().await;
    server.make(&local("rolebindings"), &binding("ann", ("ClusterRole", "admin"), "ann")).await;
    let (roles, bindings) = (local("roles"), local("rolebindings"));
    let reader = server.asked_by(&ANN, "POST", &roles, &role("reader", &["get"], &["pods", "secrets"])).await;
    assert_eq!(reader.code, 201, "{}", reader.body);
    let mighty = role("mighty", &["get", "delete"], &["pods", "nodes"]);
    let refused = server.asked_by(&ANN, "POST", &roles, &mighty).await;
    let user = "user \"ann\" (groups=[\"system:authenticated\"])";
    let missing = format!(
        "{user} is attempting to grant RBAC permissions not currently held:\n\
         {{APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"get\" \"delete\"]}}"
    );
    let words = format!("roles.rbac.authorization.k8s.io \"mighty\" is forbidden: {missing}");
    assert_eq!((refused.code, refused.message()), (403, words.as_str()));
    let grown = json!({"rules": mighty["rules"]});
    let refused = server.asked_by(&ANN, "PATCH", &format!("{roles}/reader"), &grown).await;
    let words = format!("roles.rbac.authorization.k8s.io \"reader\" is forbidden: {missing}");
    assert_eq!((refused.code, refused.message()), (403, words.as_str()));
    let many: Vec<String> = (0..400).map(|number| format!("r{number}")).collect();
    let vast = json!({"metadata": {"name": "vast"}, "rules": [{"verbs": many, "apiGroups": many, "resources": many}]});
    let refused = server.asked_by(&ANN, "POST", &roles, &vast).await;
    assert!(refused.message().contains("name more than 100000 combinations"), "{}", refused.body);
    let (verbs, name) = ((0..90_000).collect::<Vec<u32>>(), "n".repeat(3 << 19));
    let verbs: Vec<String> = verbs.iter().map(u32::to_string).collect();
    let rule = json!({"verbs": verbs, "apiGroups": [""], "resources": ["pods"], "resourceNames": [name]});
    let long = json!({"metadata": {"name": "long"}, "rules": [rule]});
    let refused = server.asked_by(&ANN, "POST", &roles, &long).await;
    assert!(refused.message().contains("name more than 100000 combinations"), "{:.999}", refused.message());
    let many: Vec<String> = (0..300).map(|number| format!("r{number}")).collect();
    let wide = json!({"metadata": {"name": "wide"}, "rules": [{"verbs": many, "apiGroups": [""], "resources": many}]});
    let refused = server.asked_by(&ANN, "POST", &roles, &wide).await;
    assert!(refused.message().ends_with("\nand 250 more"), "{:.999}", refused.message());
    assert_eq!((refused.code, refused.message().lines().count()), (403, 52), "a few of them are listed");
    server.make(&roles, &mighty).await;
    for (role, code) in
        [(("Role", "reader"), 201), (("Role", "mighty"), 403), (("ClusterRole", "cluster-admin"), 403)]
    {
        let body = binding(&format!("to-{}", role.1), role, "bob");
        let answer = server.asked_by(&ANN, "POST", &bindings, &body).await;
        assert_eq!(answer.code, code, "{role:?}: {}", answer.body);
    }
    let dangling = server.asked_by(&ANN, "POST", &bindings, &binding("d", ("Role", "gone"), "bob")).await;
    let words = "roles.rbac.authorization.k8s.io \"gone\" not found";
    assert_eq!((dangling.code, dangling.message()), (404, words));
    let shared = json!({"subjects": [{"kind": "User", "name": "bob"}]});
    server.make(&bindings, &binding("mighty", ("Role", "mighty"), "eve")).await;
    let refused = server.asked_by(&ANN, "PATCH", &format!("{bindings}/mighty"), &shared).await;
    assert_eq!(refused.code, 403, "a binding is changed: {}", refused.body);
    let cluster = format!("{RBAC}/clusterroles");
    let denied = server.asked_by(&ANN, "POST", &cluster, &role("c", &["get"], &["pods"])).await;
    assert!(denied.message().contains("cannot create resource \"clusterroles\""), "{}", denied.message());
}

#[tokio::test]
async fn escalate_and_bind_are_verbs() {
    let server = server().await;
    let group = "rbac.authorization.k8s.io";
    let rules = json!([
        {"verbs": ["create", "update", "patch", "get"], "apiGroups": [group], "resources": ["clusterroles", "clusterrolebindings"]},
        {"verbs": ["escalate"], "apiGroups": [group], "resources": ["clusterroles"], "resourceNames": ["mine"]},
        {"verbs": ["bind"], "apiGroups": [group], "resources": ["clusterroles"], "resourceNames": ["view"]},
    ]);
    let (roles, bindings) = (format!("{RBAC}/clusterroles"), format!("{RBAC}/clusterrolebindings"));
    server.make(&roles, &json!({"metadata": {"name": "grantor"}, "rules": rules})).await;
    server.make(&bindings, &binding("ann", ("ClusterRole", "grantor"), "ann")).await;
    for name in ["mine", "yours"] {
        server.make(&roles, &role(name, &["get"], &["pods"])).await;
    }
    let grown = json!({"rules": role("", &["*"], &["*"])["rules"]});
    for (name, code) in [("mine", 200), ("yours", 403)] {
        let answer = server.asked_by(&ANN, "PATCH", &format!("{roles}/{name}"), &grown).await;
        assert_eq!(answer.code, code, "{name}: {}", answer.body);
    }
    let kept = json!({"metadata": {"finalizers": ["a.b/c"]}});
    let answer = server.asked_by(&ANN, "PATCH", &format!("{roles}/yours"), &kept).await;
    assert_eq!(answer.code, 200, "finalizers grant nothing: {}", answer.body);
    for (name, code) in [("view", 201), ("edit", 403)] {
        let answer =
            server.asked_by(&ANN, "POST", &bindings, &binding(name, ("ClusterRole", name), "bob")).await;
        assert_eq!(answer.code, code, "{name}: {}", answer.body);
    }
    let gatherer = json!({"metadata": {"name": "g"}, "aggregationRule": {"clusterRoleSelectors": [{}]}});
    let refused = server.asked_by(&ANN, "POST", &roles, &gatherer).await;
    let words = "clusterroles.rbac.authorization.k8s.io \"g\" is forbidden: must have cluster-admin privileges to use the \
                 aggregationRule";
    assert_eq!((refused.code, refused.message()), (403, words));
}

#[tokio::test]
async fn an_update_creates_for_those_who_may_create() {
    let server = server().await;
    let group = "rbac.authorization.k8s.io";
    let rules = json!([{"verbs": ["update"], "apiGroups": [group], "resources": ["roles"]}]);
    server.make(&local("roles"), &json!({"metadata": {"name": "u"}, "rules": rules})).await;
    server.make(&local("rolebindings"), &binding("ann", ("Role", "u"), "ann")).await;
    let (path, pods) = (format!("{}/r", local("roles")), role("r", &["get"], &["pods"]));
    let denied = server.asked_by(&ANN, "PUT", &path, &pods).await;
    let words = format!(
        "roles.{group} \"r\" is forbidden: User \"ann\" cannot create resource \"roles\" in API group \"{group}\" in the \
         namespace \"default\""
    );
    assert_eq!((denied.code, denied.message()), (403, words.as_str()));
    let created = json!({"metadata": {"name": "c"}, "rules": [{"verbs": ["create"], "apiGroups": [group], "resources": ["roles"]}]});
    server.make(&local("roles"), &created).await;
    server.make(&local("rolebindings"), &binding("anns", ("Role", "c"), "ann")).await;
    let refused = server.asked_by(&ANN, "PUT", &path, &pods).await;
    assert!(refused.message().contains("not currently held"), "{}", refused.message());
    let mut seen = pods.clone();
    seen["metadata"]["resourceVersion"] = "7".into();
    assert_eq!(server.put(&path, &seen).await.code, 404, "it was there");
    for code in [201, 200] {
        assert_eq!(server.put(&path, &pods).await.code, code);
    }
    let map = json!({"metadata": {"name": "m"}});
    assert_eq!(server.put("/api/v1/namespaces/default/configmaps/m", &map).await.code, 404, "not all kinds");
}

#[tokio::test]
async fn impersonation_is_refused() {
    let server = server().await;
    let cases = [
        ("Impersonate-User", "bob", "users", "users", ""),
        ("IMPERSONATE-GROUP", "system:masters", "groups", "groups", ""),
        ("impersonate-uid", "7", "uids", "uids", "authentication.k8s.io"),
        ("Impersonate-Extra-Scopes", "all", "userextras", "userextras/scopes", "authentication.k8s.io"),
    ];
    let paths = ["/api/v1/pods", "/version", "/healthz", "/orlop/v1/store/backup"];
    for ((header, value, plural, resource, group), path) in
        cases.into_iter().flat_map(|case| paths.map(|path| (case, path)))
    {
        let mut asked = request("GET", path, "", Bytes::new());
        asked.headers_mut().insert(http::HeaderName::try_from(header).unwrap(), value.parse().unwrap());
        let refused = server.send(Some(Identity::Admin), asked).await;
        let qualified = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
        let words = format!(
            "{qualified} {value:?} is forbidden: User \"kubernetes-admin\" cannot impersonate resource {resource:?} in API group {group:?} \
             at the cluster scope: impersonation is not served"
        );
        assert_eq!(
            (refused.reason(), refused.message()),
            ((403, "Forbidden"), words.as_str()),
            "{header} {path}"
        );
    }
}

#[tokio::test]
async fn the_namespace_controller_empties_and_grants_nothing() {
    let server = server().await;
    server.make(&local("roles"), &role("r", &["get"], &["pods"])).await;
    server.make(&local("rolebindings"), &binding("b", ("Role", "r"), "ann")).await;
    let send = async |method: &str, path: &str, body: &str| {
        let request = request(method, path, "application/json", Bytes::copy_from_slice(body.as_bytes()));
        server.send(Some(Identity::Controllers), request).await
    };
    let body = role("new", &["get"], &["pods"]).to_string();
    assert_eq!(send("POST", &local("roles"), &body).await.code, 403);
    for plural in ["roles", "rolebindings"] {
        let deleted = send("DELETE", &local(plural), "").await;
        assert_eq!(deleted.code, 200, "{}", deleted.body);
        assert_eq!(server.get(&local(plural)).await.body["items"], json!([]));
    }
}

#[tokio::test]
async fn reviews_say_what_is_allowed_and_by_what() {
    let server = server().await;
    server.make(&local("rolebindings"), &binding("b", ("ClusterRole", "view"), "ann")).await;
    let reviews = "selfsubjectaccessreviews";
    let asks = |verb: &str, resource: &str, namespace: &str| json!({"resourceAttributes": {"verb": verb, "resource": resource, "namespace": namespace}});
    let allowed = server.reviewed(&ANN, reviews, asks("list", "pods", "default")).await;
    let reason = "RBAC: allowed by RoleBinding \"b/default\" of ClusterRole \"view\" to User \"ann\"";
    assert_eq!(allowed, json!({"allowed": true, "reason": reason}));
    for (verb, resource, namespace) in
        [("list", "secrets", "default"), ("list", "pods", ""), ("use", "pods", "default")]
    {
        let denied = server.reviewed(&ANN, reviews, asks(verb, resource, namespace)).await;
        assert_eq!(denied, json!({"allowed": false}), "{verb} {resource} {namespace}");
    }
    let path = |path: &str| json!({"nonResourceAttributes": {"verb": "get", "path": path}});
    let version = server.reviewed(&ANN, reviews, path("/openapi/v2")).await;
    let reason = "RBAC: allowed by ClusterRoleBinding \"system:discovery\" of ClusterRole \"system:discovery\" to Group \
                  \"system:authenticated\"";
    assert_eq!(version, json!({"allowed": true, "reason": reason}));
    assert_eq!(server.reviewed(&ANN, reviews, path("/metrics")).await, json!({"allowed": false}));
    let of_others = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let mut spec = asks("list", "pods", "default");
    spec["user"] = "ann".into();
    let review = server.post(of_others, &json!({"spec": spec})).await.body;
    assert_eq!(review["status"]["allowed"], true, "{review}");
    assert_eq!(server.asked_by(&ANN, "POST", of_others, &json!({"spec": spec})).await.code, 403);
    let refused = server.post(&of_others.replace("subject", "selfsubject"), &json!({"spec": {}})).await;
    let words = "SelfSubjectAccessReview.authorization.k8s.io \"\" is invalid: spec.resourceAttributes: Invalid value: null: \
                 exactly one of nonResourceAttributes or resourceAttributes must be specified";
    assert_eq!((refused.code, refused.message()), (422, words));
}

#[tokio::test]
async fn the_list_of_rules_is_of_one_namespace() {
    let server = server().await;
    server.make(&local("roles"), &role("r", &["get"], &["secrets"])).await;
    server.make(&local("rolebindings"), &binding("b", ("Role", "r"), "ann")).await;
    let own = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"]});
    for (namespace, expected) in [("default", true), ("kube-system", false)] {
        let status = server.reviewed(&ANN, "selfsubjectrulesreviews", json!({"namespace": namespace})).await;
        let rules = status["resourceRules"].as_array().unwrap();
        assert_eq!(rules.contains(&own), expected, "{namespace}: {status}");
        assert!(
            status.to_string().contains("selfsubjectaccessreviews") && status["incomplete"] == false,
            "{status}"
        );
        let paths = json!({"verbs": ["get"], "nonResourceURLs": ["/healthz", "/livez", "/readyz", "/version", "/version/"]});
        assert!(status["nonResourceRules"].as_array().unwrap().contains(&paths), "{status}");
    }
}

#[tokio::test]
async fn a_start_completes_what_every_cluster_has() {
    let directory = tempfile::tempdir().unwrap();
    let server = server_in(directory.path()).await;
    let roles = format!("{RBAC}/clusterroles");
    let (proxier, basic) = (format!("{roles}/system:node-proxier"), format!("{roles}/system:basic-user"));
    let made = server.get(&proxier).await.body;
    assert_eq!(made["metadata"]["annotations"]["rbac.authorization.kubernetes.io/autoupdate"], "true");
    assert_eq!(made["metadata"]["labels"]["kubernetes.io/bootstrapping"], "rbac-defaults");
    let own = role("", &["get"], &["pods"])["rules"].clone();
    assert_eq!(server.patch(&proxier, "merge", &json!({"rules": own})).await.code, 200);
    let annotations = json!({"rbac.authorization.kubernetes.io/autoupdate": "false"});
    let taken = json!({"metadata": {"annotations": annotations}, "rules": own});
    assert_eq!(server.patch(&basic, "merge", &taken).await.code, 200);
    assert_eq!(server.delete(&format!("{roles}/view")).await.code, 200);
    let bound = format!("{RBAC}/clusterrolebindings/system:node-proxier");
    assert_eq!(server.delete(&bound).await.code, 200);
    let other = binding("system:node-proxier", ("ClusterRole", "edit"), "ann");
    server.make(&format!("{RBAC}/clusterrolebindings"), &other).await;
    let unchanged = server.get(&format!("{roles}/edit")).await.body;
    server.stop.cancel();
    server.running.stopped().await;
    let server = server_in(directory.path()).await;
    let rules = server.get(&proxier).await.body["rules"].clone();
    assert_eq!(rules[0], own[0], "what is there besides stays");
    assert!(rules.to_string().contains("endpointslices"), "{rules}");
    assert_eq!(server.get(&basic).await.body["rules"], own);
    assert_eq!(server.get(&format!("{roles}/view")).await.code, 200);
    let binding = server.get(&bound).await.body;
    assert_eq!(
        (&binding["roleRef"]["name"], &binding["subjects"][0]["name"]),
        (&json!("system:node-proxier"), &json!("system:kube-proxy"))
    );
    assert_eq!(server.get(&format!("{roles}/edit")).await.body, unchanged, "what is whole is not written");
}
