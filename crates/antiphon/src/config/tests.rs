//! What a node file may say and what it is told when it may not, as golden files beside their inputs in
//! testdata/config: `x.yml` and `x.txt`. UPDATE=1 rewrites the texts and the reference page.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::*;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

/// An empty folder of this test's own.
fn folder(test: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("antiphon-config-{}-{test}", std::process::id()));
    fs::create_dir_all(&folder).expect("a temporary directory");
    folder
}

fn compare(file: &Path, actual: &str) -> Result<(), String> {
    if std::env::var_os("UPDATE").is_some() {
        fs::write(file, actual).expect("the golden file can be written");
    }
    let expected = fs::read_to_string(file).unwrap_or_default();
    let same = expected == actual;
    if same {
        Ok(())
    } else {
        Err(format!("{}: run with UPDATE=1 and look at the change\n{actual}", file.display()))
    }
}

/// What a golden file holds: the resolved file, or its mistakes.
fn transcript(name: &str, bytes: &[u8]) -> (bool, String) {
    match parse(name, bytes, &BTreeMap::new()) {
        Ok(config) => {
            let warnings: String =
                config.warnings.iter().map(|warning| format!("warning: {warning}\n")).collect();
            (true, format!("{warnings}{:#?}\n", NodeConfig { warnings: Vec::new(), ..config }))
        }
        Err(errors) => (false, format!("{errors}\n")),
    }
}

#[test]
fn every_file_is_resolved_or_told_all_of_its_mistakes() {
    let mut failures = Vec::new();
    let mut refused = 0;
    let inputs = fs::read_dir(root().join("testdata/config")).expect("the inputs");
    for input in inputs
        .map(|input| input.expect("an input").path())
        .filter(|path| path.extension().is_some_and(|e| e == "yml"))
    {
        let name = input.file_name().expect("a name").to_string_lossy().into_owned();
        let (sound, text) = transcript(&name, &fs::read(&input).expect("an input can be read"));
        assert_eq!(sound, !name.starts_with("bad-"), "{name}:\n{text}");
        refused += usize::from(!sound);
        failures.extend(compare(&input.with_extension("txt"), &text).err());
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(refused >= 30, "only {refused} bad inputs are left");
}

#[test]
fn every_mistake_of_every_bad_file_names_its_line() {
    for input in fs::read_dir(root().join("testdata/config")).expect("the inputs") {
        let path = input.expect("an input").path();
        if path.extension().is_none_or(|e| e != "yml") {
            continue;
        }
        if let Err(errors) = parse("x.yml", &fs::read(&path).expect("readable"), &BTreeMap::new()) {
            assert!(!errors.problems.is_empty());
            let about_a_line = |problem: &Problem| matches!(problem.place, Place::Line(..));
            let whole = path.ends_with("bad-empty.yml");
            assert!(whole || errors.problems.iter().all(about_a_line), "{}: {errors}", path.display());
        }
    }
}

#[test]
fn the_reference_page_is_what_the_table_says() {
    let page = root().join("../../docs/reference/settings.md");
    compare(&page, &antiphon_core::settings::page()).expect("the page is current");
}

#[test]
fn the_packaged_example_resolves_without_a_warning() {
    let text = fs::read(root().join("../../examples/three-nodes/n1.yml")).expect("the example");
    let config = parse("n1.yml", &text, &BTreeMap::new()).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.warnings, []);
    assert!(matches!(config.store, StoreConfig::Raft(raft) if raft.partner_addrs.len() == 2));
}

fn member() -> Sample {
    Sample {
        scope: "demo".into(),
        name: "n1".parse().expect("a name"),
        restapi: Address::parse("127.0.0.1:8008", None).expect("an address"),
        etcd: None,
        raft: Address::parse("[::1]:2222", None).expect("an address"),
        partners: vec![
            Address::parse("127.0.0.1:2223", None).expect("an address"),
            Address::parse("h:1", None).expect("an address"),
        ],
        raft_dir: "/tmp/x y/raft".into(),
        raft_password: Secret::new("a\"b: {c} # 'd' \\ é"),
        server: Some(SampleServer {
            address: Address::parse("127.0.0.1:5432", None).expect("an address"),
            data_dir: "/tmp/x y/data".into(),
            bin_dir: Some("/usr/lib/postgresql/17/bin".into()),
            superuser_password: Secret::new("x' host=evil"),
            replication_password: Secret::new("yes"),
            pg_hba: vec!["local all all peer".into()],
        }),
        settings: serde_json::json!({"ttl": "5s", "postgresql": {"parameters": {"shared_buffers": "16MB"}}}),
    }
}

#[test]
fn a_written_sample_reads_back_as_it_was_meant() {
    let node = member();
    let config = parse("n1.yml", sample(&node).as_bytes(), &BTreeMap::new())
        .unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.warnings, []);
    assert_eq!((config.name, config.scope), (node.name.clone(), node.scope.clone()));
    assert_eq!(config.bootstrap.dcs, node.settings);
    let StoreConfig::Raft(raft) = config.store else { panic!("a raft") };
    assert_eq!(
        (raft.password, raft.partner_addrs),
        (Some(node.raft_password.clone()), node.partners.clone())
    );
    let (server, wanted) = (config.postgresql.expect("a server"), node.server.expect("a server"));
    assert_eq!((server.connect_address, server.data_dir), (wanted.address, wanted.data_dir));
    assert_eq!(server.superuser.password, Some(wanted.superuser_password));
    assert_eq!(server.replication.password, Some(wanted.replication_password));

    let witness = sample(&Sample { server: None, ..member() });
    assert!(parse("w.yml", witness.as_bytes(), &BTreeMap::new()).expect("a witness").postgresql.is_none());
}

#[test]
fn the_environment_overrides_the_file_and_antiphon_overrides_patroni() {
    let env = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>()
    };
    let text = sample(&member());
    let config = parse(
        "n1.yml",
        text.as_bytes(),
        &env(&[
            ("PATRONI_NAME", "p1"),
            ("ANTIPHON_NAME", "a1"),
            ("PATRONI_SCOPE", "other"),
            ("PATRONI_POSTGRESQL_LISTEN", "*:6000"),
            ("PATRONI_POSTGRESQL_CONNECT_ADDRESS", "10.0.0.9:6000"),
            ("PATRONI_REPLICATION_PASSWORD", "from env: [x"),
            ("PATRONI_RAFT_PARTNER_ADDRS", "'10.0.0.1:1', 10.0.0.2:2"),
            ("PATRONI_RESTAPI_ALLOWLIST", "['10.0.0.0/8', ::1]"),
            ("PATRONI_REPLICATION_SSLMODE", "require"),
            ("PATRONI_NAMESPACE", ""),
            ("PATRONI_RESTAPI_LISTNE", "x"),
            ("HOME", "/root"),
        ]),
    )
    .unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!((config.name.as_str(), config.scope.as_str()), ("a1", "other"));
    assert_eq!((config.namespace.as_str(), config.restapi.allowlist.len()), ("/service", 2));
    let server = config.postgresql.expect("a server");
    assert_eq!(server.replication.options.get("sslmode").map(String::as_str), Some("require"));
    assert_eq!(
        (server.listen.to_string(), server.connect_address.to_string()),
        ("*:6000".into(), "10.0.0.9:6000".into())
    );
    assert_eq!(server.replication.password.expect("a password").expose(), "from env: [x");
    assert!(matches!(&config.store, StoreConfig::Raft(raft) if raft.partner_addrs.len() == 2));
    let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    let hint = "environment variable PATRONI_RESTAPI_LISTNE: is not a variable that is read; did you mean PATRONI_RESTAPI_LISTEN?";
    assert_eq!(warnings, [hint]);

    let errors = parse("n1.yml", text.as_bytes(), &env(&[("PATRONI_RESTAPI_LISTEN", "nowhere:x")]))
        .expect_err("a bad port");
    assert!(
        errors.to_string().starts_with("environment variable PATRONI_RESTAPI_LISTEN: restapi.listen: "),
        "{errors}"
    );
    let whole = env(&[("PATRONI_CONFIGURATION", &text)]);
    assert_eq!(
        load(Path::new("/nonexistent"), &whole).expect("the variable is the file").name.as_str(),
        "n1"
    );
}

#[test]
fn a_directory_is_merged_in_the_order_of_its_names() {
    let folder = folder("merge");
    fs::write(folder.join("10-base.yml"), sample(&member())).expect("written");
    fs::write(folder.join("20-own.yml"), "name: n7\nbootstrap: {initdb: }\npostgresql: {bin_dir: }\n")
        .expect("written");
    fs::write(folder.join("30-notes.txt"), "not read: [").expect("written");
    let config = load(&folder, &BTreeMap::new()).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.name.as_str(), "n7");
    assert_eq!((config.bootstrap.initdb, config.postgresql.expect("a server").bin_dir), (Vec::new(), None));

    fs::write(folder.join("40-slip.yml"), "\nrestapi: {lisen: x}\n").expect("written");
    let errors = load(&folder, &BTreeMap::new()).expect_err("a slip").to_string();
    assert!(errors.ends_with("40-slip.yml:2: restapi.lisen: unknown key; did you mean listen?"), "{errors}");
    fs::remove_dir_all(&folder).expect("removed");
}

#[test]
fn what_cannot_be_read_is_an_error_and_not_a_hang() {
    let folder = folder("unreadable");
    for path in [folder.join("absent.yml"), folder.clone(), PathBuf::from("/dev/zero")] {
        let errors = load(&path, &BTreeMap::new()).expect_err("nothing to read");
        assert_eq!(errors.problems.len(), 1, "{errors}");
    }
    fs::remove_dir_all(&folder).expect("removed");
}

#[test]
fn a_file_with_passwords_that_all_can_read_gets_a_warning() {
    let folder = folder("modes");
    let file = folder.join("n1.yml");
    fs::write(&file, sample(&member())).expect("written");
    for (mode, warned) in [(0o644, true), (0o600, false), (0o640, false)] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("chmod");
        let config = load(&file, &BTreeMap::new()).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(
            config.warnings.iter().any(|warning| warning.text.contains("chmod 600")),
            warned,
            "{mode:o}"
        );
    }
    fs::remove_dir_all(&folder).expect("removed");
}

#[test]
fn no_password_reaches_a_log_by_debug_or_by_an_error() {
    let config = parse("n1.yml", sample(&member()).as_bytes(), &BTreeMap::new()).expect("a sound file");
    let shown = format!("{config:?}");
    for password in ["host=evil", "{c}"] {
        assert!(!shown.contains(password), "{shown}");
    }
    let broken =
        "etcd3: {url: 'https://root:hunter2@h:1', password: [hunter2]}\nraft: {password: {hunter2: 1}}\n";
    let errors = parse("n1.yml", broken.as_bytes(), &BTreeMap::new()).expect_err("broken").to_string();
    assert!(!errors.contains("hunter2"), "{errors}");
}

#[test]
fn no_cut_of_a_file_and_no_flipped_byte_panics() {
    let text = sample(&member()).into_bytes();
    for end in 0..text.len() {
        let _ = parse("cut.yml", &text[..end], &BTreeMap::new());
        for byte in [b'\t', b'[', b'&', 0xff, b'\n'] {
            let mut flipped = text.clone();
            flipped[end] = byte;
            let _ = parse("flipped.yml", &flipped, &BTreeMap::new());
        }
    }
}

#[test]
fn nesting_and_aliases_are_bounded_before_they_cost_anything() {
    let deep = ["[".repeat(200_000), "- ".repeat(400_000), "? ".repeat(400_000), "{a: ".repeat(50_000)];
    for text in deep {
        parse("deep.yml", text.as_bytes(), &BTreeMap::new()).expect_err("too deep");
    }
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..30 {
        bomb.push_str(&format!("a{level}: &a{level} [{}]\n", format!("*a{},", level - 1).repeat(10)));
    }
    let errors = parse("bomb.yml", bomb.as_bytes(), &BTreeMap::new()).expect_err("a bomb").to_string();
    assert!(errors.contains("aliases stand for more than"), "{errors}");
}
