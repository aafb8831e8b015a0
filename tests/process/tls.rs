//! TLS to the database, with real certificates: each `sslmode`, right and wrong authorities and names, and certificates
//! of clients.

use std::path::Path;

use sqlx::PgPool;

use crate::{cluster::Cluster, program::Environment};

/// Makes an authority, or a certificate that one has signed, in the directory of the server.
fn certificate(cluster: &Cluster, name: &str, authority: Option<&str>, alternative_name: Option<&str>) {
    let (key, certificate, subject) = (format!("{name}.key"), format!("{name}.crt"), format!("/CN={name}"));
    let mut arguments: Vec<String> =
        ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
            .map(str::to_owned)
            .into();
    arguments.extend(["-subj", &subject, "-keyout", &key, "-out", &certificate].map(str::to_owned));
    if let Some(authority) = authority {
        arguments.extend([
            "-CA".to_owned(),
            format!("{authority}.crt"),
            "-CAkey".to_owned(),
            format!("{authority}.key"),
        ]);
        arguments.extend(["-addext".to_owned(), "basicConstraints=critical,CA:FALSE".to_owned()]);
    }
    if let Some(alternative_name) = alternative_name {
        arguments.extend(["-addext".to_owned(), format!("subjectAltName={alternative_name}")]);
    }
    cluster.as_owner("openssl", &arguments.iter().map(String::as_str).collect::<Vec<_>>());
}

#[sqlx::test(migrations = false)]
async fn each_tls_mode_does_what_it_does_in_postgresqls_own_programs(pool: PgPool) {
    let cluster = Cluster::new();
    cluster.create();
    certificate(&cluster, "authority", None, None);
    certificate(&cluster, "stranger", None, None);
    certificate(&cluster, "server", Some("authority"), Some("DNS:localhost"));
    certificate(&cluster, "certified", Some("authority"), None);
    certificate(&cluster, "unknown", Some("stranger"), None);
    let access = "hostssl   all certified 127.0.0.1/32 cert\n\
                  hostnossl all encrypted 127.0.0.1/32 reject\n\
                  host      all all       127.0.0.1/32 trust\n";
    std::fs::write(Path::new(&cluster.path("access")), access).expect("a file");
    let file = |setting: &str, name: &str| format!("{setting}={}", cluster.path(name));
    cluster.start(&[
        "ssl=on",
        &file("ssl_cert_file", "server.crt"),
        &file("ssl_key_file", "server.key"),
        &file("ssl_ca_file", "authority.crt"),
        &file("hba_file", "access"),
    ]);
    let base = format!("postgresql://postgres@127.0.0.1:{}/postgres", cluster.port);
    let admin = PgPool::connect(&base).await.expect("a connection");
    sqlx::raw_sql("CREATE ROLE certified LOGIN; CREATE ROLE encrypted LOGIN").execute(&admin).await.expect("roles");
    admin.close().await;

    let environment = Environment::new(&pool);
    let check = async |url: &str| {
        let output = environment.clone().with("DATABASE_URL", url).run(&["check", "db"]).await;
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let (root, other_root) = (file("sslrootcert", "authority.crt"), file("sslrootcert", "stranger.crt"));
    let pair =
        |name: &str| format!("{}&{}", file("sslcert", &format!("{name}.crt")), file("sslkey", &format!("{name}.key")));
    for (user, host, parameters, expected) in [
        ("postgres", "127.0.0.1", "sslmode=disable".to_owned(), "without TLS"),
        ("postgres", "127.0.0.1", String::new(), "with TLS"),
        ("postgres", "127.0.0.1", "sslmode=prefer".to_owned(), "with TLS"),
        ("postgres", "127.0.0.1", "sslmode=require".to_owned(), "with TLS"),
        // An authority that is given is never ignored.
        ("postgres", "127.0.0.1", format!("sslmode=require&{root}"), "with TLS"),
        ("postgres", "127.0.0.1", format!("sslmode=require&{other_root}"), "UnknownIssuer"),
        ("postgres", "127.0.0.1", format!("sslmode=verify-ca&{root}"), "with TLS"),
        ("postgres", "127.0.0.1", format!("sslmode=verify-ca&{other_root}"), "UnknownIssuer"),
        ("postgres", "localhost", format!("sslmode=verify-full&{root}"), "with TLS"),
        ("postgres", "127.0.0.1", format!("sslmode=verify-full&{root}"), "not valid for name"),
        ("postgres", "localhost", format!("sslmode=verify-full&{other_root}"), "UnknownIssuer"),
        ("postgres", "localhost", "sslmode=verify-full".to_owned(), "UnknownIssuer"),
        ("encrypted", "127.0.0.1", "sslmode=disable".to_owned(), "pg_hba.conf rejects connection"),
        ("encrypted", "127.0.0.1", String::new(), "with TLS"),
        ("certified", "localhost", format!("sslmode=verify-full&{root}"), "requires a valid client certificate"),
        ("certified", "localhost", format!("sslmode=verify-full&{root}&{}", pair("certified")), "with TLS"),
        ("certified", "localhost", format!("sslmode=verify-full&{root}&{}", pair("unknown")), "DATABASE_URL"),
        (
            "certified",
            "localhost",
            format!("{}&sslmode=verify-full&{root}", file("sslcert", "certified.crt")),
            "sslkey",
        ),
    ] {
        let url = format!("postgresql://{user}@{host}:{}/postgres?{parameters}", cluster.port);
        let printed = check(&url).await;
        assert!(printed.contains(expected), "{url}: {printed}");
    }
    // A server without TLS.
    let plain = environment.variables["DATABASE_URL"].clone();
    for (mode, expected) in [("prefer", "without TLS"), ("require", "server does not support TLS")] {
        let printed = check(&format!("{plain}{}sslmode={mode}", if plain.contains('?') { '&' } else { '?' })).await;
        assert!(printed.contains(expected), "{mode}: {printed}");
    }
}
