//! The router section as people write it, right and wrong.

use antiphon_router::{Consistency, Encryption};
use antiphon_tls::{Clients, File, Trust};

use super::*;
use crate::config::yaml;

fn read(text: &str) -> Result<Option<RouterFile>, String> {
    let findings = Findings::default();
    let root = yaml::read(&"r.yml".into(), text.as_bytes(), &findings).expect("sound YAML");
    let file = resolve(&root, &findings);
    findings.finish().map(|_| file).map_err(|errors| errors.to_string())
}

#[test]
fn a_router_stands_alone_or_beside_a_member() {
    let section = "router:\n  listen: 127.0.0.1\n  auth_user: router\n  auth_password: p\n";
    let alone = read(&format!("scope: main\n{section}  agents: [a, 'b:9']\n")).unwrap().unwrap();
    assert!(alone.alone);
    assert_eq!(alone.router.listen.port, ROUTER_PORT);
    let agents: Vec<_> = alone.router.agents.iter().map(ToString::to_string).collect();
    assert_eq!(agents, ["a:8008", "b:9"]);
    let beside = format!("name: n1\nrestapi: {{listen: '10.0.0.1:8008'}}\n{section}");
    let beside = read(&beside).unwrap().unwrap();
    assert!(!beside.alone);
    assert_eq!(beside.router.agents[0].to_string(), "10.0.0.1:8008", "its own agent");
    assert!(read("scope: main\n").unwrap().is_none());
}

#[test]
fn servers_stand_in_for_agents() {
    let section = "router:\n  listen: 127.0.0.1\n";
    let one = read(&format!("{section}  auth_type: trust\n  servers: 'db:5433'\n")).unwrap().unwrap();
    assert!(one.alone && one.router.agents.is_empty());
    assert_eq!(one.router.servers[0].to_string(), "db:5433");
    let several = read(&format!("{section}  auth_user: router\n  servers: [a, b]\n")).unwrap().unwrap();
    assert_eq!(several.router.servers[1].to_string(), "b:5432");
    let told = read(&format!("{section}  auth_type: trust\n  servers: [a, b]\n  agents: [a]\n")).unwrap_err();
    assert!(told.contains("router.servers: has several, and needs auth_user"), "{told}");
    assert!(told.contains("router.servers: is given beside agents"), "{told}");
}

#[test]
fn reads_stay_with_the_leader_unless_the_file_says_otherwise() {
    let section = "router:\n  listen: 127.0.0.1\n  agents: [a]\n  auth_user: router\n";
    assert!(read(section).unwrap().unwrap().router.reads.is_none());
    let split = format!("{section}  read_from: followers\n  consistency: bounded(2s)\n  causal_wait: 0\n");
    let split = read(&split).unwrap().unwrap().router;
    let reads = split.reads.unwrap();
    assert_eq!(reads.sessions.consistency, Some(Consistency::Bounded(2000)));
    assert_eq!(reads.causal_wait, Duration::ZERO);
    let told = read(
        "router: {listen: 127.0.0.1, agents: [a], auth_type: trust, read_from: followers, consistency: weak}",
    )
    .unwrap_err();
    assert!(told.contains("router.read_from: is followers, and needs auth_user"), "{told}");
    assert!(told.contains("router.consistency: ") && told.contains("must be strong"), "{told}");
}

#[test]
fn users_and_databases_ask_for_what_they_like() {
    let section = "router:\n  listen: 127.0.0.1\n  agents: [a]\n  auth_user: router\n  consistency: strong\n";
    let more = "  users:\n    anna: {consistency: eventual}\n    web: {report_token: true}\n  databases: {app: {consistency: monotonic}}\n";
    let reads = read(&format!("{section}  read_from: followers\n{more}")).unwrap().unwrap().router.reads;
    let reads = reads.unwrap();
    assert_eq!(reads.users["anna"].consistency, Some(Consistency::Eventual));
    assert_eq!(reads.users["web"], Wants { consistency: None, report_token: Some(true) });
    assert_eq!(reads.databases["app"].consistency, Some(Consistency::Monotonic));
    let told = read(&format!("{section}{more}  report_token: on\n")).unwrap_err();
    assert!(told.contains("router.users.web.report_token: needs read_from: followers"), "{told}");
    assert!(told.contains("router.report_token: needs read_from"), "{told}");
    let wrong = format!("{section}  users: {{anna: {{consistensy: strong}}, eve: 3}}\n");
    let told = read(&wrong).unwrap_err();
    assert!(told.contains("router.users.anna.consistensy: unknown key; did you mean"), "{told}");
    assert!(told.contains("router.users.eve: must be a map"), "{told}");
}

#[test]
fn reads_are_spread_as_the_file_says() {
    let section =
        "router:\n  listen: 127.0.0.1\n  agents: [a]\n  auth_user: router\n  read_from: followers\n";
    let standard = read(section).unwrap().unwrap().router.reads.unwrap();
    assert_eq!(standard.balance, Balance::default());
    let more = "  zone: eu-1\n  zone_busy_max: 5\n  lag_max: 2s\n  lag_bytes_max: 16MB\n  slow_start: 0\n";
    let balance = read(&format!("{section}{more}")).unwrap().unwrap().router.reads.unwrap().balance;
    let wanted = Balance {
        zone: Some("eu-1".to_owned()),
        zone_busy_max: 5,
        lag_max: Some(Duration::from_secs(2)),
        lag_bytes_max: Some(16 << 20),
        slow_start: Duration::ZERO,
    };
    assert_eq!(balance, wanted);
    let told = read(&format!("{section}  lag_bytes_max: -1\n")).unwrap_err();
    assert!(told.contains("router.lag_bytes_max: \"-1\" is not a number of bytes like 16MB"), "{told}");
}

#[test]
fn tls_goes_by_the_names_that_pgbouncer_gave_it() {
    let section = "router:\n  listen: 127.0.0.1\n  agents: [a]\n  auth_user: router\n";
    let plain = read(section).unwrap().unwrap().router;
    assert!(plain.clients_tls.is_none() && plain.agents_tls.is_none());
    assert_eq!(plain.servers_tls.encryption, Encryption::Preferred);
    let clients = "  client_tls_cert_file: /c\n  client_tls_key_file: /k\n  client_tls_ca_file: /ca\n";
    let servers = "  server_tls_sslmode: verify-full\n  server_tls_ca_file: /sca\n";
    let agents = "  agents_tls: {cacert: /aca}\n";
    for (mode, required, asks) in
        [("prefer", false, false), ("require", true, false), ("verify-full", true, true)]
    {
        let text = format!("{section}  client_tls_sslmode: {mode}\n{clients}{servers}{agents}");
        let router = read(&text).unwrap().unwrap().router;
        let clients = router.clients_tls.unwrap();
        assert_eq!(clients.required, required, "{mode}");
        assert_eq!(clients.files.clients != Clients::NotAsked, asks, "{mode}");
        assert_eq!(clients.files.identity.certificates.to_string(), "router.client_tls_cert_file: /c");
        assert_eq!(router.servers_tls.encryption, Encryption::Required);
        let Trust::Authorities(authorities) = router.servers_tls.files.trust else { panic!("verified") };
        assert_eq!(authorities.to_string(), "router.server_tls_ca_file: /sca");
        let Trust::Authorities(authorities) = router.agents_tls.unwrap().trust else { panic!("verified") };
        assert_eq!(authorities.to_string(), "router.agents_tls.cacert: /aca");
    }
    // Beside a member the API is spoken to as the command line does.
    let beside =
        format!("name: n1\nrestapi: {{listen: '10.0.0.1:8008', certfile: /c, cafile: /ca}}\n{section}");
    let files = read(&beside).unwrap().unwrap().router.agents_tls.unwrap();
    assert_eq!(files.trust, Trust::Authorities(File::new("restapi.cafile", "/ca")));
}

#[test]
fn mistakes_of_tls_are_told_with_their_remedy() {
    let section = "router:\n  listen: 127.0.0.1\n  agents: [a]\n  auth_user: router\n";
    let cases = [
        (
            "  client_tls_sslmode: verify-ful\n",
            "is none of disable, allow, prefer, require, verify-ca, verify-full; did you mean verify-full?",
        ),
        ("  client_tls_sslmode: require\n", "router.client_tls_cert_file: is missing"),
        ("  client_tls_cert_file: /c\n", "router.client_tls_cert_file: needs client_tls_sslmode"),
        (
            "  client_tls_sslmode: verify-ca\n  client_tls_cert_file: /c\n",
            "router.client_tls_ca_file: is missing",
        ),
        (
            "  client_tls_sslmode: require\n  client_tls_key_file: /c\n",
            "router.client_tls_key_file: needs client_tls_cert_file",
        ),
        ("  server_tls_sslmode: verify-ca\n", "router.server_tls_ca_file: is missing"),
        ("  server_tls_ca_file: x\n", "router.server_tls_ca_file: \"x\" is not an absolute path"),
        ("  agents_tls:\n", "router.agents_tls: is empty"),
        ("  agents_tls: {cacrt: /ca}\n", "router.agents_tls.cacrt: unknown key; did you mean cacert?"),
    ];
    for (more, wanted) in cases {
        let told = read(&format!("{section}{more}")).unwrap_err();
        assert!(told.contains(wanted), "{more}{told}");
    }
}

#[test]
fn mistakes_are_told_with_their_remedy() {
    let told = read("router:\n  pool_sise: 3\n  client_tls_certfile: /x\nraftt: 1\n").unwrap_err();
    let wanted = [
        "router.listen: is missing",
        "router.agents: is missing",
        "router.auth_user: is missing",
        "router.pool_sise: unknown key; did you mean pool_size?",
        "router.client_tls_certfile: unknown key; did you mean client_tls_cert_file?",
        "raftt: unknown key",
    ];
    for text in wanted {
        assert!(told.contains(text), "{text}:\n{told}");
    }
}

#[test]
fn a_userlist_holds_verifiers_and_no_other_secret_is_repeated() {
    let verifier = "SCRAM-SHA-256$4096:c2FsdA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let file = std::env::temp_dir().join(format!("antiphon-userlist-{}", std::process::id()));
    let section =
        format!("router: {{listen: '127.0.0.1:1', agents: [a], auth_file: '{}'}}\n", file.display());
    std::fs::write(&file, format!("; users\n\n\"an\"\"na\" \"{verifier}\"\n")).unwrap();
    let sound = read(&section).unwrap().unwrap();
    std::fs::write(&file, "\"anna\" \"secret\"\nanna secret\n").unwrap();
    let told = read(&section).unwrap_err();
    std::fs::remove_file(&file).unwrap();
    let RouterSecrets::Users(users) = sound.router.authentication.secrets else { panic!("a userlist") };
    assert!(users.contains_key("an\"na"));
    assert!(told.contains("line 1") && told.contains("line 2") && !told.contains("secret"), "{told}");
}

#[test]
fn rules_say_who_is_asked_for_what() {
    let section = "router:\n  listen: 127.0.0.1\n  agents: [a]\n  auth_user: router\n";
    let tls = "  client_tls_sslmode: prefer\n  client_tls_cert_file: /c\n  client_tls_ca_file: /ca\n";
    let hba = "  hba:\n  - hostssl all all 10.0.0.0/8 cert\n  - host all all all scram-sha-256\n";
    let router = read(&format!("{section}{hba}{tls}")).unwrap().unwrap().router;
    assert!(router.authentication.rules.ask_certificates());
    assert!(matches!(router.authentication.secrets, RouterSecrets::Query(_)));
    assert!(matches!(router.clients_tls.unwrap().files.clients, Clients::Optional(_)));
    let cert = read(&format!("{section}  auth_type: cert\n{tls}")).unwrap().unwrap().router;
    assert!(matches!(cert.authentication.secrets, RouterSecrets::Nothing));
    let cases = [
        (hba.to_owned(), "router.hba: asks clients for certificates; set client_tls_sslmode"),
        ("  hba: [host all all all ldap]\n".to_owned(), "router.hba: line 1 has the method ldap"),
        (format!("  auth_type: md5\n{hba}{tls}"), "router.auth_type: is given beside rules"),
        ("  auth_type: hba\n".to_owned(), "router.auth_type: is hba, which needs rules"),
        (
            "  auth_hba_file: /nowhere/hba\n".to_owned(),
            "router.auth_hba_file: /nowhere/hba could not be read",
        ),
    ];
    for (more, wanted) in cases {
        let told = read(&format!("{section}{more}")).unwrap_err();
        assert!(told.contains(wanted), "{more}{told}");
    }
}
