//! The rows: one per served kind. Facts are upstream's (`pkg/registry/*/storage`).

use super::{
    Conversion, Kind, RBAC_GROUP, Subresource, VERBS, conversion, defaults, fields, prepare, print, validate,
};
use crate::names;

const GET_PATCH_UPDATE: &[&str] = &["get", "patch", "update"];

const fn own(name: &'static str, group: &'static str, kind: &'static str) -> Subresource {
    Subresource { name, group, version: "v1", kind, verbs: GET_PATCH_UPDATE }
}

const fn core(name: &'static str, kind: &'static str, verbs: &'static [&'static str]) -> Subresource {
    Subresource { name, group: "", version: "v1", kind, verbs }
}

const SCALE: Subresource = Subresource {
    name: "scale",
    group: "autoscaling",
    version: "v1",
    kind: "Scale",
    verbs: GET_PATCH_UPDATE,
};

const POD_SUBRESOURCES: &[Subresource] = &[
    core("attach", "PodAttachOptions", &["create", "get"]),
    core("binding", "Binding", &["create"]),
    Subresource { name: "eviction", group: "policy", version: "v1", kind: "Eviction", verbs: &["create"] },
    core("exec", "PodExecOptions", &["create", "get"]),
    core("log", "Pod", &["get"]),
    core("portforward", "PodPortForwardOptions", &["create", "get"]),
    own("status", "", "Pod"),
];

/// What most rows share; never registered itself.
const BASE: Kind = Kind {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    categories: &[],
    namespaced: true,
    type_name: "",
    storage: "",
    verbs: VERBS,
    subresources: &[],
    create_on_update: false,
    has_generation: false,
    name_rule: names::dns_subdomain,
    default: prepare::nothing,
    prepare_create: prepare::nothing,
    prepare_update: prepare::no_change,
    validate: validate::nothing,
    validate_update: validate::no_change,
    fields: fields::none,
    field_names: &[],
    columns: print::NAME_AGE,
    cells: print::name_age,
    conversion: None,
};

/// What Role and ClusterRole share; never registered itself.
const ROLE: Kind = Kind {
    group: RBAC_GROUP,
    create_on_update: true,
    name_rule: names::path_segment,
    columns: print::rbac::ROLE,
    cells: print::rbac::role,
    ..BASE
};

/// What RoleBinding and ClusterRoleBinding share; never registered itself.
const BINDING: Kind = Kind {
    group: RBAC_GROUP,
    create_on_update: true,
    name_rule: names::path_segment,
    default: defaults::rbac::binding,
    validate_update: validate::rbac::binding_update,
    columns: print::rbac::BINDING,
    cells: print::rbac::binding,
    ..BASE
};

pub(super) const KINDS: &[Kind] = &[
    Kind {
        kind: "ConfigMap",
        plural: "configmaps",
        singular: "configmap",
        short_names: &["cm"],
        type_name: "io.k8s.api.core.v1.ConfigMap",
        storage: "configmaps",
        validate: validate::config::config_map,
        validate_update: validate::config::immutable,
        columns: print::simple::CONFIG_MAP,
        cells: print::simple::config_map,
        ..BASE
    },
    Kind {
        kind: "Endpoints",
        plural: "endpoints",
        singular: "endpoints",
        short_names: &["ep"],
        type_name: "io.k8s.api.core.v1.Endpoints",
        storage: "endpoints",
        default: defaults::service::endpoints,
        validate: validate::service::endpoints,
        columns: print::network::ENDPOINTS,
        cells: print::network::endpoints,
        ..BASE
    },
    Kind {
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        type_name: "io.k8s.api.core.v1.Event",
        storage: "events",
        validate: validate::simple::event,
        fields: fields::event,
        field_names: fields::EVENT,
        columns: print::simple::EVENT,
        cells: print::simple::event,
        ..BASE
    },
    Kind {
        kind: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        short_names: &["ns"],
        namespaced: false,
        type_name: "io.k8s.api.core.v1.Namespace",
        storage: "namespaces",
        verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
        subresources: &[core("finalize", "Namespace", &["update"]), own("status", "", "Namespace")],
        name_rule: names::dns_label,
        default: defaults::simple::namespace,
        prepare_create: prepare::namespace_create,
        prepare_update: prepare::namespace_update,
        fields: fields::phase,
        field_names: &["status.phase"],
        columns: print::simple::NAMESPACE,
        cells: print::simple::namespace,
        ..BASE
    },
    Kind {
        kind: "Node",
        plural: "nodes",
        singular: "node",
        short_names: &["no"],
        namespaced: false,
        type_name: "io.k8s.api.core.v1.Node",
        storage: "nodes",
        subresources: &[own("status", "", "Node")],
        default: defaults::simple::node,
        prepare_update: prepare::keep_status,
        validate: validate::simple::node,
        validate_update: validate::simple::node_update,
        fields: fields::node,
        field_names: &["spec.unschedulable"],
        columns: print::node::COLUMNS,
        cells: print::node::cells,
        ..BASE
    },
    Kind {
        kind: "Pod",
        plural: "pods",
        singular: "pod",
        short_names: &["po"],
        categories: &["all"],
        type_name: "io.k8s.api.core.v1.Pod",
        storage: "pods",
        subresources: POD_SUBRESOURCES,
        has_generation: true,
        default: defaults::pod::pod,
        prepare_create: prepare::pod_create,
        prepare_update: prepare::keep_status,
        validate: validate::pod::pod,
        validate_update: validate::pod::pod_update,
        fields: fields::pod,
        field_names: fields::POD,
        columns: print::pod::COLUMNS,
        cells: print::pod::cells,
        ..BASE
    },
    Kind {
        kind: "Secret",
        plural: "secrets",
        singular: "secret",
        type_name: "io.k8s.api.core.v1.Secret",
        storage: "secrets",
        default: defaults::simple::secret,
        validate: validate::config::secret,
        validate_update: validate::config::secret_update,
        fields: fields::secret,
        field_names: &["type"],
        columns: print::simple::SECRET,
        cells: print::simple::secret,
        ..BASE
    },
    Kind {
        kind: "ServiceAccount",
        plural: "serviceaccounts",
        singular: "serviceaccount",
        short_names: &["sa"],
        type_name: "io.k8s.api.core.v1.ServiceAccount",
        storage: "serviceaccounts",
        columns: print::simple::SERVICE_ACCOUNT,
        cells: print::simple::service_account,
        ..BASE
    },
    Kind {
        kind: "Service",
        plural: "services",
        singular: "service",
        short_names: &["svc"],
        categories: &["all"],
        type_name: "io.k8s.api.core.v1.Service",
        storage: "services",
        subresources: &[own("status", "", "Service")],
        name_rule: names::dns_1035_label,
        default: defaults::service::service,
        prepare_create: prepare::service_create,
        prepare_update: prepare::service_update,
        validate: validate::service::service,
        validate_update: validate::service::service_update,
        fields: fields::service,
        field_names: &["spec.clusterIP", "spec.type"],
        columns: print::network::SERVICE,
        cells: print::network::service,
        ..BASE
    },
    Kind {
        group: "apps",
        kind: "Deployment",
        plural: "deployments",
        singular: "deployment",
        short_names: &["deploy"],
        categories: &["all"],
        type_name: "io.k8s.api.apps.v1.Deployment",
        storage: "deployments",
        subresources: &[SCALE, own("status", "apps", "Deployment")],
        has_generation: true,
        default: defaults::workload::deployment,
        prepare_create: prepare::drop_status,
        prepare_update: prepare::keep_status,
        validate: validate::workload::deployment,
        validate_update: validate::workload::selector_is_immutable,
        columns: print::workload::DEPLOYMENT,
        cells: print::workload::deployment,
        ..BASE
    },
    Kind {
        group: "apps",
        kind: "ReplicaSet",
        plural: "replicasets",
        singular: "replicaset",
        short_names: &["rs"],
        categories: &["all"],
        type_name: "io.k8s.api.apps.v1.ReplicaSet",
        storage: "replicasets",
        subresources: &[SCALE, own("status", "apps", "ReplicaSet")],
        has_generation: true,
        default: defaults::workload::replica_set,
        prepare_create: prepare::drop_status,
        prepare_update: prepare::keep_status,
        validate: validate::workload::replica_set,
        validate_update: validate::workload::selector_is_immutable,
        fields: fields::replica_set,
        field_names: &["status.replicas"],
        columns: print::workload::REPLICA_SET,
        cells: print::workload::replica_set,
        ..BASE
    },
    Kind {
        group: "coordination.k8s.io",
        kind: "Lease",
        plural: "leases",
        singular: "lease",
        type_name: "io.k8s.api.coordination.v1.Lease",
        storage: "leases",
        create_on_update: true,
        validate: validate::simple::lease,
        columns: print::simple::LEASE,
        cells: print::simple::lease,
        ..BASE
    },
    Kind {
        group: "discovery.k8s.io",
        kind: "EndpointSlice",
        plural: "endpointslices",
        singular: "endpointslice",
        type_name: "io.k8s.api.discovery.v1.EndpointSlice",
        storage: "endpointslices",
        has_generation: true,
        default: defaults::service::endpoint_slice,
        validate: validate::service::endpoint_slice,
        validate_update: validate::service::endpoint_slice_update,
        columns: print::network::ENDPOINT_SLICE,
        cells: print::network::endpoint_slice,
        ..BASE
    },
    Kind {
        group: "events.k8s.io",
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        type_name: "io.k8s.api.events.v1.Event",
        storage: "events",
        validate: validate::simple::event,
        fields: fields::event,
        field_names: fields::EVENT,
        columns: print::simple::EVENT,
        cells: print::simple::event,
        conversion: Some(Conversion {
            to_storage: conversion::event_to_storage,
            from_storage: conversion::event_from_storage,
        }),
        ..BASE
    },
    Kind {
        group: "networking.k8s.io",
        kind: "NetworkPolicy",
        plural: "networkpolicies",
        singular: "networkpolicy",
        short_names: &["netpol"],
        type_name: "io.k8s.api.networking.v1.NetworkPolicy",
        storage: "networkpolicies",
        has_generation: true,
        default: defaults::network_policy::network_policy,
        validate: validate::network_policy::network_policy,
        columns: print::network::NETWORK_POLICY,
        cells: print::network::network_policy,
        ..BASE
    },
    Kind {
        kind: "ClusterRoleBinding",
        plural: "clusterrolebindings",
        singular: "clusterrolebinding",
        namespaced: false,
        type_name: "io.k8s.api.rbac.v1.ClusterRoleBinding",
        storage: "clusterrolebindings",
        validate: validate::rbac::cluster_role_binding,
        ..BINDING
    },
    Kind {
        kind: "ClusterRole",
        plural: "clusterroles",
        singular: "clusterrole",
        namespaced: false,
        type_name: "io.k8s.api.rbac.v1.ClusterRole",
        storage: "clusterroles",
        validate: validate::rbac::cluster_role,
        ..ROLE
    },
    Kind {
        kind: "RoleBinding",
        plural: "rolebindings",
        singular: "rolebinding",
        type_name: "io.k8s.api.rbac.v1.RoleBinding",
        storage: "rolebindings",
        validate: validate::rbac::role_binding,
        ..BINDING
    },
    Kind {
        kind: "Role",
        plural: "roles",
        singular: "role",
        type_name: "io.k8s.api.rbac.v1.Role",
        storage: "roles",
        validate: validate::rbac::role,
        ..ROLE
    },
];
