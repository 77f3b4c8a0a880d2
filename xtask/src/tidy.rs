//! `cargo xtask tidy`: the rules of ARCHITECTURE.md that the compiler does not know.
//!
//! I1 dependency directions, I3 who links libcontainer, I4 pure modules, one TLS provider, file headers, forbidden
//! module names. Prints every violation, then fails.

mod rules;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::process;

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: Vec<String>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
}

pub fn run() -> Result<()> {
    let mut violations = dependency_violations()?;
    for file in rust_files()? {
        let relative = file.strip_prefix(process::root()).unwrap_or(&file).to_path_buf();
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        violations.extend(rules::file(&relative, &text));
    }
    for violation in &violations {
        eprintln!("tidy: {violation}");
    }
    if !violations.is_empty() {
        bail!("{} violations", violations.len());
    }
    println!("tidy: no violation");
    Ok(())
}

fn dependency_violations() -> Result<Vec<String>> {
    let mut command = process::cargo();
    let output = process::run_quietly(
        "reading the dependency graph",
        command.args(["metadata", "--format-version", "1", "--locked"]),
    )?;
    let metadata: Metadata = serde_json::from_str(&output).context("parse cargo metadata")?;
    let members: Vec<&Package> =
        metadata.packages.iter().filter(|package| metadata.workspace_members.contains(&package.id)).collect();
    let names: Vec<&str> = members.iter().map(|package| package.name.as_str()).collect();
    let mut violations = Vec::new();
    for package in &members {
        for dependency in &package.dependencies {
            let development = dependency.kind.as_deref() == Some("dev");
            violations.extend(rules::dependency(&names, &package.name, &dependency.name, development));
        }
    }
    let resolved = metadata.resolve.nodes.iter().map(|node| node.id.as_str());
    violations.extend(rules::tls_providers(resolved));
    Ok(violations)
}

/// Every Rust file that git knows or would add.
fn rust_files() -> Result<Vec<PathBuf>> {
    let mut git = std::process::Command::new("git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"]).current_dir(process::root());
    let listed = process::run_quietly("listing files", &mut git)?;
    Ok(listed
        .lines()
        .map(|line| process::root().join(Path::new(line)))
        .filter(|path| path.is_file())
        .collect())
}
