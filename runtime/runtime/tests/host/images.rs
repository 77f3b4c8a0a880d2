//! Archives and registries: what arrives is verified, what is wrong is said in one sentence, and nothing half made stays.
//!
//! The registry is Debian's `docker-registry`, unpacked below `target/peers`; its storage is written by the test, so that it can also lie.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use runtime::{AuthConfig, Endpoint, ImageError, PullProgress, RegistryHost, Runtime};

use crate::fixture::{Host, IMAGE, archive_of, chain, container, exited, image_blobs, layers, start, until};

/// `user:secret` for the registry's htpasswd file (bcrypt).
const HTPASSWD: &str = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";
const NAME: &str = "registry.test/team/busybox";

/// A running registry; killed when dropped.
struct Registry {
    process: Child,
    storage: PathBuf,
    address: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Debian's registry, which the test run has unpacked.
fn program() -> PathBuf {
    let path =
        std::env::var_os("ORLOP_DOCKER_REGISTRY").expect("run the registry tests with `cargo xtask test 1`");
    PathBuf::from(path)
}

impl Registry {
    async fn start(host: &Host, port: u16, extra: &str) -> Registry {
        let program = program();
        let base = host.directory.path().join(format!("registry-{port}"));
        let (storage, config) = (base.join("storage"), base.join("config.yml"));
        std::fs::create_dir_all(&storage).unwrap();
        let address = format!("127.0.0.1:{port}");
        let text = format!(
            "version: 0.1\nlog: {{ level: error }}\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\nhttp:\n  addr: {address}\n{extra}",
            storage.display()
        );
        std::fs::write(&config, text).unwrap();
        let process = Command::new(program)
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("the registry listens", || std::net::TcpStream::connect(&address).is_ok()).await;
        Registry { process, storage, address }
    }

    /// Puts an image into the registry's storage.
    fn put(&self, blobs: &BTreeMap<String, Vec<u8>>, manifest: &str) {
        let root = self.storage.join("docker/registry/v2");
        let repository = root.join("repositories/team/busybox");
        let write = |path: PathBuf, bytes: &[u8]| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        };
        for (name, bytes) in blobs {
            write(self.blob(name), bytes);
            write(
                repository.join(format!("_layers/sha256/{name}/link")),
                format!("sha256:{name}").as_bytes(),
            );
        }
        let digits = manifest.trim_start_matches("sha256:");
        write(repository.join(format!("_manifests/revisions/sha256/{digits}/link")), manifest.as_bytes());
        write(repository.join("_manifests/tags/v1/current/link"), manifest.as_bytes());
    }

    fn blob(&self, name: &str) -> PathBuf {
        self.storage.join(format!("docker/registry/v2/blobs/sha256/{}/{name}/data", &name[..2]))
    }
}

fn reached_at(host: &mut Host, mirrors: &[&str], origin: &str) {
    let plain = |address: &&str| Endpoint { host: (*address).into(), plain_http: true };
    host.config.registries.hosts = vec![RegistryHost {
        name: "registry.test".into(),
        mirrors: mirrors.iter().map(plain).collect(),
        endpoint: Some(plain(&origin)),
        auth: None,
    }];
}

fn nothing_partial(root: &Path) {
    for directory in ["blobs/sha256", "layers", "images"] {
        let left: Vec<_> =
            std::fs::read_dir(root.join(directory)).unwrap().flatten().map(|entry| entry.path()).collect();
        assert!(left.iter().all(|path| !path.display().to_string().contains("partial")), "{left:?}");
    }
}

#[tokio::test]
async fn a_pulled_image_runs() {
    let mut host = Host::new();
    let registry = Registry::start(&host, 5000, "").await;
    let (blobs, manifest) = image_blobs(&layers());
    registry.put(&blobs, &manifest);
    // The first server is not there; the second one has it.
    reached_at(&mut host, &["127.0.0.1:1"], &registry.address);
    let runtime = host.open().await;
    let (sender, mut progress) = tokio::sync::mpsc::channel(100);
    let image = runtime.pull(&format!("{NAME}:v1"), None, Some(sender)).await;
    let image = image.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(image.repo_tags, [format!("{NAME}:v1")]);
    assert_eq!(image.repo_digests, [format!("{NAME}@{manifest}")]);
    let mut seen = Vec::new();
    while let Some(step) = progress.recv().await {
        seen.push(step);
    }
    assert!(
        seen.contains(&PullProgress::Resolving)
            && seen.contains(&PullProgress::Unpacking { done: 1, total: 2 })
    );
    assert_eq!(runtime.image_status(&image.id).unwrap().as_ref(), Some(&image));
    let by_digest = runtime.pull(&format!("{NAME}@{manifest}"), None, None).await.unwrap();
    assert_eq!(by_digest.id, image.id);
    let pod = runtime.run_sandbox(host.pod()).await.unwrap();
    let config = runtime::ContainerConfig { image: format!("{NAME}:v1"), ..container("c", "cat /kept") };
    let id = start(&runtime, &pod, config).await;
    let status = exited(&runtime, &id).await;
    assert_eq!((status.exit_code, status.image_ref), (0, format!("{NAME}@{manifest}")));
    // The container keeps its layers when its image goes.
    let count = || std::fs::read_dir(host.config.root.join("layers")).unwrap().count();
    assert!(runtime.image_disk_usage().await.unwrap().used_bytes > 1_000_000);
    runtime.remove_image(&image.id).await.unwrap();
    assert!(runtime.list_images().is_empty() && count() == 4, "{}", count());
    runtime.remove_container(&id).await.unwrap();
    runtime.remove_image(&image.id).await.unwrap();
    runtime.pull(&format!("{NAME}:v1"), None, None).await.unwrap();
    runtime.remove_image(&format!("{NAME}:v1")).await.unwrap();
    assert_eq!((count(), std::fs::read_dir(host.config.root.join("blobs/sha256")).unwrap().count()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_made_during_an_import_keeps_its_layers() {
    let host = Host::new();
    let runtime = host.open_with_image().await;
    let pod = runtime.run_sandbox(host.pod()).await.unwrap();
    // Another image of the same name, through a pipe: its import is under way until the test writes.
    let (blobs, manifest) = image_blobs(&layers()[..1]);
    let pipe = host.directory.path().join("pipe");
    let mode = rustix::fs::Mode::from_bits_truncate(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let (importer, path) = (runtime.clone(), pipe.clone());
    let import = tokio::spawn(async move { importer.import_archive(&path, Some(IMAGE)).await });
    let opened = tokio::task::spawn_blocking(|| std::fs::File::options().write(true).open(pipe));
    let mut writer = opened.await.unwrap().unwrap();
    let id = start(&runtime, &pod, container("c", "exec sleep 1000")).await;
    // The reader may close at the archive's end mark, before the last padding.
    let write = move || drop(std::io::Write::write_all(&mut writer, &archive_of(&blobs, &manifest)));
    tokio::task::spawn_blocking(write).await.unwrap();
    import.await.unwrap().unwrap_or_else(|error| panic!("{}", chain(&error)));
    let meta = host.config.root.join("containers").join(id.as_str()).join("meta.json");
    let meta: serde_json::Value = serde_json::from_slice(&std::fs::read(meta).unwrap()).unwrap();
    let used = meta["layers"].as_array().unwrap();
    assert_eq!(used.len(), 2);
    for layer in used {
        let directory = host.config.root.join("layers").join(layer.as_str().unwrap());
        assert!(directory.is_dir(), "{} is gone", directory.display());
    }
}

#[tokio::test]
async fn errors_of_registries_are_told_apart() {
    let mut host = Host::new();
    std::fs::write(host.directory.path().join("htpasswd"), HTPASSWD).unwrap();
    let auth = format!(
        "auth: {{ htpasswd: {{ realm: test, path: {}/htpasswd }} }}\n",
        host.directory.path().display()
    );
    let open = Registry::start(&host, 5001, "").await;
    let guarded = Registry::start(&host, 5002, &auth).await;
    let (blobs, manifest) = image_blobs(&layers());
    open.put(&blobs, &manifest);
    guarded.put(&blobs, &manifest);

    reached_at(&mut host, &[], &open.address);
    let runtime = host.open().await;
    let absent = runtime.pull(&format!("{NAME}:no"), None, None).await.unwrap_err();
    assert!(matches!(absent, ImageError::NotFound { .. }), "{}", chain(&absent));
    let expect = format!(
        "failed to pull and unpack image \"{NAME}:no\": failed to resolve reference \"{NAME}:no\": {NAME}:no: not found"
    );
    assert_eq!(absent.to_string(), expect);
    let layer = blobs.iter().max_by_key(|(_, bytes)| bytes.len()).unwrap().0.clone();
    let good = std::fs::read(open.blob(&layer)).unwrap();
    let mut lie = good.clone();
    lie[1000] ^= 1;
    std::fs::write(open.blob(&layer), &lie).unwrap();
    let wrong = runtime.pull(&format!("{NAME}:v1"), None, None).await.unwrap_err();
    assert!(matches!(wrong, ImageError::DigestMismatch { .. }), "{}", chain(&wrong));
    assert!(runtime.list_images().is_empty());
    nothing_partial(&host.config.root);
    std::fs::write(open.blob(&layer), &good).unwrap();
    runtime.pull(&format!("{NAME}:v1"), None, None).await.unwrap();
    for name in ["UPPER", "a@sha256:1"] {
        let error = runtime.pull(name, None, None).await.unwrap_err();
        assert!(matches!(error, ImageError::InvalidReference { .. }), "{error}");
    }
    drop(runtime);

    reached_at(&mut host, &[], &guarded.address);
    let runtime: Runtime = host.open().await;
    let denied = runtime.pull(&format!("{NAME}:v1"), None, None).await.unwrap_err();
    assert!(matches!(denied, ImageError::Unauthorized { .. }), "{}", chain(&denied));
    let login = |password: &str| AuthConfig {
        username: "user".into(),
        password: password.into(),
        ..AuthConfig::default()
    };
    let denied = runtime.pull(&format!("{NAME}:v1"), Some(login("guess")), None).await.unwrap_err();
    assert!(matches!(denied, ImageError::Unauthorized { .. }), "{}", chain(&denied));
    let pulled = runtime.pull(&format!("{NAME}:v1"), Some(login("secret")), None).await;
    pulled.unwrap_or_else(|error| panic!("{}", chain(&error)));
    drop(runtime);

    reached_at(&mut host, &[], "127.0.0.1:1");
    let runtime = host.open().await;
    let unreachable = runtime.pull(&format!("{NAME}:v1"), None, None).await.unwrap_err();
    assert!(matches!(unreachable, ImageError::Unreachable { .. }), "{}", chain(&unreachable));
}

#[tokio::test]
async fn a_registry_with_tls_needs_its_authority() {
    let mut host = Host::new();
    let key = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let (certificate, secret) =
        (host.directory.path().join("cert.pem"), host.directory.path().join("key.pem"));
    std::fs::write(&certificate, key.cert.pem()).unwrap();
    std::fs::write(&secret, key.signing_key.serialize_pem()).unwrap();
    let tls = format!("  tls: {{ certificate: {}, key: {} }}\n", certificate.display(), secret.display());
    let registry = Registry::start(&host, 5003, &tls).await;
    let (blobs, manifest) = image_blobs(&layers());
    registry.put(&blobs, &manifest);
    let name = "localhost:5003/team/busybox:v1";
    let runtime = host.open().await;
    let error = runtime.pull(name, None, None).await.unwrap_err();
    assert!(matches!(error, ImageError::Unreachable { .. }), "{}", chain(&error));
    drop(runtime);
    host.config.registries.ca_files = vec![certificate];
    let runtime = host.open().await;
    runtime.pull(name, None, None).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
}

#[tokio::test]
async fn archives_that_lie_are_refused_and_leave_nothing() {
    let host = Host::new();
    let runtime = host.open().await;
    let (blobs, manifest) = image_blobs(&layers());
    let archive = host.directory.path().join("image.tar");
    let import = async |bytes: &[u8]| {
        std::fs::write(&archive, bytes).unwrap();
        runtime.import_archive(&archive, Some("x")).await
    };
    let layer = blobs.iter().max_by_key(|(_, bytes)| bytes.len()).unwrap().0.clone();
    let mut lying = blobs.clone();
    lying.get_mut(&layer).unwrap()[1000] ^= 1;
    let error = import(&archive_of(&lying, &manifest)).await.unwrap_err();
    assert!(matches!(error, ImageError::DigestMismatch { .. }), "{error}");
    let mut missing = blobs.clone();
    missing.remove(&layer);
    let error = import(&archive_of(&missing, &manifest)).await.unwrap_err();
    assert!(error.to_string().contains("is missing"), "{error}");
    let good = archive_of(&blobs, &manifest);
    for bytes in [&b"not a tar archive"[..], &good[..good.len() / 2]] {
        let error = import(bytes).await.unwrap_err();
        // A cut blob is one with another digest.
        assert!(matches!(error, ImageError::Malformed { .. } | ImageError::DigestMismatch { .. }), "{error}");
    }
    nothing_partial(&host.config.root);
    assert!(runtime.list_images().is_empty());
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, &good).unwrap();
    let images = import(&packed.finish().unwrap()).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(images[0].repo_tags, ["docker.io/library/x:latest"]);
}
