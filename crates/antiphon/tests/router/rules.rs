//! Who is let in: by rules as pg_hba.conf has them, with certificates, and with passwords kept as MD5.

use antiphon::demo::cluster::PASSWORD;
use antiphon::demo::http;
use antiphon_testcerts::{Authority, Issued};

use super::support::{Another, Routed, UP_WITHIN, client_program, wait_until};

/// A user, variables of libpq, and what is then told.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);

/// What `psql` prints and complains of as this user with these variables.
fn psql(router: &Another, user: &str, variables: &[(&str, &str)]) -> String {
    let mut command = client_program("psql", router.port);
    command.args(["-U", user, "-AtXc", "SELECT 'in as ' || current_user"]);
    let output = command.envs(variables.iter().copied()).output().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

fn path(of: &std::path::Path) -> &str {
    of.to_str().unwrap()
}

/// What makes libpq show a certificate.
fn shows(issued: &Issued) -> [(&str, &str); 3] {
    [("PGSSLMODE", "require"), ("PGSSLCERT", path(&issued.certificate)), ("PGSSLKEY", path(&issued.key))]
}

#[tokio::test]
async fn rules_certificates_and_md5_passwords_let_in_whom_they_should() {
    let routed = Routed::start_secure("rules", 1, "").await;
    let dir = routed.dir().join("clients");
    let (people, strangers) = (Authority::new(&dir, "people"), Authority::new(&dir, "strangers"));
    let (anna, bob, eve) =
        (people.issue("anna", &["a"]), people.issue("bob", &["b"]), strangers.issue("eve", &["anna"]));
    prepare(&routed).await;
    let certificates = routed.certificates();
    let section = format!(
        "{}{}  client_tls_ca_file: {}\n  hba:\n  - hostssl all anna 127.0.0.0/8 cert\n  - host all kept_as_md5 127.0.0.1/32 md5\n  \
         - host all barred all reject\n  - hostssl all carol all scram-sha-256 clientcert=verify-full\n  \
         - hostssl all all 127.0.0.1 255.255.255.255 scram-sha-256\n  - host sameuser trusted all trust\n",
        certificates.of_clients("prefer"),
        certificates.of_servers(),
        people.file.display()
    );
    let router = routed.another("hba", &section);
    wait_until("it listens", UP_WITHIN, async || {
        !psql(&router, "postgres", &[("PGSSLMODE", "require")]).contains("Connection refused")
    })
    .await;
    let (secure, clear) = ([("PGSSLMODE", "require")], [("PGSSLMODE", "disable")]);
    let none = [("PGSSLMODE", "require"), ("PGSSLCERT", "/nowhere")];
    let cases: [Case<'_>; 13] = [
        ("postgres", &secure, "in as postgres"),
        (
            "postgres",
            &clear,
            "no rule of the router lets anybody in for host \"127.0.0.1\", user \"postgres\"",
        ),
        ("anna", &shows(&anna), "in as anna"),
        ("anna", &shows(&bob), "certificate authentication failed for user \"anna\""),
        ("anna", &none, "connection requires a valid client certificate"),
        ("anna", &clear, "no rule of the router"),
        ("anna", &shows(&eve), "unknown ca"),
        ("kept_as_md5", &clear, "in as kept_as_md5"),
        (
            "kept_as_md5",
            &[("PGPASSWORD", "wrong"), ("PGSSLMODE", "disable")],
            "password authentication failed",
        ),
        ("barred", &secure, "a rule of the router rejects the connection"),
        ("carol", &shows(&bob), "certificate authentication failed for user \"carol\""),
        ("carol", &none, "connection requires a valid client certificate"),
        ("nobody", &secure, "password authentication failed"),
    ];
    for (user, variables, wanted) in cases {
        let told = psql(&router, user, variables);
        assert!(told.contains(wanted), "{user} {variables:?}: {told}{}", router.log());
    }
    let carol = people.issue("carol", &["c"]);
    let told = psql(&router, "carol", &shows(&carol));
    assert!(told.contains("in as carol"), "{told}");
    // A password kept as MD5 does not do where SCRAM is asked for.
    let scram = routed.another("scram", &certificates.of_servers());
    wait_until("it is refused", UP_WITHIN, async || {
        psql(&scram, "kept_as_md5", &clear).contains("password authentication failed")
    })
    .await;
    assert!(scram.log().contains("its password is kept as MD5"));
}

/// Users, and servers that ask for what each of them has.
async fn prepare(routed: &Routed) {
    let api = routed.cluster.nodes[0].api_port;
    let hba = r#"{"postgresql": {"pg_hba": ["local all all trust", "host all anna 127.0.0.1/32 trust", "host all all 127.0.0.1/32 md5"]}}"#;
    let told = http::patch(api, "/config", hba, UP_WITHIN).await.unwrap();
    assert_eq!(told.status, 200, "{}", told.body);
    let client = routed.client().await;
    let users = format!(
        "CREATE ROLE anna LOGIN; CREATE ROLE barred LOGIN PASSWORD '{PASSWORD}'; \
         CREATE ROLE carol LOGIN PASSWORD '{PASSWORD}'; SET password_encryption = md5; \
         CREATE ROLE kept_as_md5 LOGIN PASSWORD '{PASSWORD}'"
    );
    client.batch_execute(&users).await.unwrap();
    wait_until("the server has taken its rules over", UP_WITHIN, async || {
        let rules = "SELECT count(*) FROM pg_hba_file_rules WHERE auth_method = 'md5'";
        client.query_one(rules, &[]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
}
