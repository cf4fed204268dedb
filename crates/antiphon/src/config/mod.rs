//! The node file: a superset of patroni.yml, read, merged, overridden by the environment, checked.
//!
//! Raw to resolved in four steps: text to a tree with the line of every value (`yaml`), files of a directory
//! merged in order (`source`), environment laid over it (`environment`), sections read into typed fields
//! (`resolve` and its neighbours). All mistakes are reported together, each with its place and its remedy.
//!
//! What Patroni knows and Antiphon does not do is either accepted with a warning, if nothing that matters
//! changes, or refused with a sentence. Nothing is ignored silently. The rest of the program sees
//! [`NodeConfig`] only and must not read files or variables for settings itself.

mod address;
mod bootstrap;
mod environment;
mod mesh;
mod model;
mod postgres;
mod problem;
mod resolve;
mod router;
mod sample;
mod secret;
mod section;
mod source;
mod store;
mod tls;
mod yaml;

use std::collections::BTreeMap;
use std::path::Path;

pub use address::{Address, Listen};
pub use mesh::MeshFile;
pub use model::{
    Account, ApiConfig, BootstrapConfig, CallbackEvent, CtlConfig, EtcdConfig, HeartbeatConfig, LogConfig,
    LogFormat, LogLevel, Login, NodeConfig, PostgresConfig, RaftConfig, ReplicaMethod, StoreConfig, Tags,
    WatchdogConfig, WatchdogMode,
};
pub use problem::{ConfigErrors, Place, Problem};
pub use router::{RouterAccount, RouterAuthentication, RouterConfig, RouterFile, RouterReads, RouterSecrets};
pub use sample::{Sample, SampleServer, sample};
pub use secret::Secret;
pub use tls::{RouterClientsTls, RouterServersTls};

/// Reads a node file, or a directory of `*.yml` in the order of their names, with the environment's overrides.
///
/// # Errors
/// Every mistake, one a line, as `n1.yml:7: postgresql.listen: what is wrong and what to do`.
pub fn load(path: &Path, env: &BTreeMap<String, String>) -> Result<NodeConfig, ConfigErrors> {
    let findings = problem::Findings::default();
    let root = source::read(path, env, &findings);
    finish(root, env, findings)
}

/// Reads the `router` section of a file; none if it has none.
///
/// # Errors
/// As [`load`], of that section alone.
pub fn load_router(
    path: &Path,
    env: &BTreeMap<String, String>,
) -> Result<Option<(RouterFile, Vec<Problem>)>, ConfigErrors> {
    let findings = problem::Findings::default();
    let file = source::read(path, env, &findings).and_then(|mut root| {
        environment::overlay(&mut root, env, &findings);
        router::resolve(&root, &findings)
    });
    let warnings = findings.finish()?;
    Ok(file.map(|file| (file, warnings)))
}

/// Reads what a file says of a node of a mesh; none if it says nothing of one.
///
/// # Errors
/// As [`load`], of that section alone.
pub fn load_mesh(
    path: &Path,
    env: &BTreeMap<String, String>,
) -> Result<Option<(MeshFile, Vec<Problem>)>, ConfigErrors> {
    let findings = problem::Findings::default();
    let file = source::read(path, env, &findings).and_then(|mut root| {
        environment::overlay(&mut root, env, &findings);
        mesh::resolve(&root, env, &findings)
    });
    let warnings = findings.finish()?;
    Ok(file.map(|file| (file, warnings)))
}

/// Reads a node file that is already in memory; `name` is what its errors call it.
///
/// # Errors
/// As [`load`].
pub fn parse(name: &str, bytes: &[u8], env: &BTreeMap<String, String>) -> Result<NodeConfig, ConfigErrors> {
    let findings = problem::Findings::default();
    let root = yaml::read(&name.into(), bytes, &findings);
    finish(root, env, findings)
}

fn finish(
    root: Option<yaml::Node>,
    env: &BTreeMap<String, String>,
    findings: problem::Findings,
) -> Result<NodeConfig, ConfigErrors> {
    let config = root.and_then(|mut root| {
        environment::overlay(&mut root, env, &findings);
        resolve::resolve(&root, &findings)
    });
    let warnings = findings.finish()?;
    match config {
        Some(config) => Ok(NodeConfig { warnings, ..config }),
        None => {
            let place = Place::File("configuration".into());
            let text = "could not be resolved, and no reader said why; please report this file, without its passwords";
            Err(ConfigErrors {
                problems: vec![Problem { place, path: String::new(), text: text.to_owned() }],
            })
        }
    }
}

#[cfg(test)]
mod tests;
