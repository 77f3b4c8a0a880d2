//! Who a container runs as and what it may do: the pod's and the container's security context, merged. Pure.
//!
//! The container's own value wins. Without a seccomp profile the runtime's default one is used (kubelet: `--seccomp-default`).

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, Pod, PodSecurityContext, PodSpec, SeccompProfile, SecurityContext as Own,
};
use runtime::{Image, SecurityContext, SecurityProfile, SupplementalGroupsPolicy};

use crate::pods::sandbox::Names;

#[cfg(test)]
mod tests;

/// Why a container must not run as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecurityError {
    /// runAsUser is 0.
    #[error("container's runAsUser breaks non-root policy (pod: \"{pod}\", container: {container})")]
    RootUser {
        /// The pod.
        pod: String,
        /// The container.
        container: String,
    },
    /// The image's user is root.
    #[error("container has runAsNonRoot and image will run as root (pod: \"{pod}\", container: {container})")]
    RootImage {
        /// The pod.
        pod: String,
        /// The container.
        container: String,
    },
    /// The image's user is a name.
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (pod: \"{pod}\", container: {container})"
    )]
    NamedUser {
        /// The user.
        user: String,
        /// The pod.
        pod: String,
        /// The container.
        container: String,
    },
}

/// The merged context of a container.
///
/// # Errors
/// [`SecurityError`], where runAsNonRoot is broken or cannot be verified.
pub fn security(pod: &Pod, container: &Container, image: &Image) -> Result<SecurityContext, SecurityError> {
    let no_spec = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&no_spec);
    let no_context = PodSecurityContext::default();
    let of_pod = spec.security_context.as_ref().unwrap_or(&no_context);
    let no_own = Own::default();
    let own = container.security_context.as_ref().unwrap_or(&no_own);
    let run_as_user = own.run_as_user.or(of_pod.run_as_user);
    if own.run_as_non_root.or(of_pod.run_as_non_root) == Some(true) {
        check_non_root(pod, container, run_as_user, image)?;
    }
    let privileged = own.privileged == Some(true);
    let capabilities = own.capabilities.as_ref();
    let names = |list: Option<&Vec<String>>| -> Vec<String> {
        list.into_iter().flatten().map(|name| capability(name)).collect()
    };
    let unmasked = own.proc_mount.as_deref() == Some("Unmasked") || privileged;
    let mut groups = of_pod.supplemental_groups.clone().unwrap_or_default();
    groups.extend(of_pod.fs_group);
    let strict = of_pod.supplemental_groups_policy.as_deref() == Some("Strict");
    let run_as_user = run_as_user.or(image.uid);
    Ok(SecurityContext {
        privileged,
        add_capabilities: names(capabilities.and_then(|capabilities| capabilities.add.as_ref())),
        drop_capabilities: names(capabilities.and_then(|capabilities| capabilities.drop.as_ref())),
        run_as_user,
        run_as_group: own.run_as_group.or(of_pod.run_as_group),
        run_as_username: if run_as_user.is_none() { image.username.clone() } else { String::new() },
        supplemental_groups: groups,
        supplemental_groups_policy: if strict {
            SupplementalGroupsPolicy::Strict
        } else {
            SupplementalGroupsPolicy::Merge
        },
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: unmasked.then(Vec::new),
        readonly_paths: unmasked.then(Vec::new),
        seccomp: if privileged {
            SecurityProfile::Unconfined
        } else {
            seccomp(own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref()))
        },
        apparmor: if privileged {
            SecurityProfile::Unconfined
        } else {
            apparmor(own.app_armor_profile.as_ref().or(of_pod.app_armor_profile.as_ref()))
        },
        target_container: None,
        rlimits: Vec::new(),
    })
}

/// The seccomp profile of the pod itself.
pub fn pod_seccomp(spec: &PodSpec) -> SecurityProfile {
    seccomp(spec.security_context.as_ref().and_then(|context| context.seccomp_profile.as_ref()))
}

fn check_non_root(
    pod: &Pod,
    container: &Container,
    run_as_user: Option<i64>,
    image: &Image,
) -> Result<(), SecurityError> {
    let names = Names::of(pod);
    let pod = format!("{}_{}({})", names.name, names.namespace, names.uid);
    let container = container.name.clone();
    match (run_as_user, image.uid, image.username.as_str()) {
        (Some(0), _, _) => Err(SecurityError::RootUser { pod, container }),
        (Some(_), _, _) => Ok(()),
        (None, Some(0), _) | (None, None, "") => Err(SecurityError::RootImage { pod, container }),
        (None, Some(_), _) => Ok(()),
        (None, None, user) => Err(SecurityError::NamedUser { user: user.into(), pod, container }),
    }
}

/// A capability without its prefix, in upper case.
fn capability(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    upper.strip_prefix("CAP_").map(str::to_owned).unwrap_or(upper)
}

fn profile(kind: &str, localhost: Option<&String>) -> SecurityProfile {
    match kind {
        "Unconfined" => SecurityProfile::Unconfined,
        "Localhost" => SecurityProfile::Localhost(localhost.cloned().unwrap_or_default()),
        _ => SecurityProfile::RuntimeDefault,
    }
}

fn seccomp(wanted: Option<&SeccompProfile>) -> SecurityProfile {
    wanted.map_or(SecurityProfile::RuntimeDefault, |wanted| {
        profile(&wanted.type_, wanted.localhost_profile.as_ref())
    })
}

fn apparmor(wanted: Option<&AppArmorProfile>) -> SecurityProfile {
    wanted.map_or(SecurityProfile::RuntimeDefault, |wanted| {
        profile(&wanted.type_, wanted.localhost_profile.as_ref())
    })
}
