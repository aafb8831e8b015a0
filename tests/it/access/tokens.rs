//! Tokens that are let in, and all the ones that are not.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::{
    access::{OrganizationId, Role},
    api::vocabulary::token,
    clock::Clock,
    config::{Auth, load},
    db::migrations::MIGRATOR,
};

use super::{
    EC_PUBLIC, ED_PUBLIC, RSA, RSA_NEXT, RSA_PUBLIC, SECRET, claims, ec, ed, look, now, rsa, secret, signed,
    signed_text,
};
use crate::service::{Service, config};

const HS256: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// Settings of authentication alone.
fn settings(pairs: &[(&str, &str)]) -> Result<Auth, Vec<String>> {
    let pairs: Vec<_> = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    load(pairs.into_iter()).map_err(|problems| problems.0)
}

/// A token signed with `JWT_SECRET` whose claims are these.
fn with_claims(claims: &Value) -> String {
    signed_text(HS256, &claims.to_string(), &secret(), Algorithm::HS256)
}

/// A token signed with `JWT_SECRET` whose header is this.
fn with_header(header: &Value) -> String {
    signed(header, &claims(&json!({})), &secret(), Algorithm::HS256)
}

/// `text` is the claims up to their end, as JSON has no word for some of them.
fn with_claims_text(text: &str) -> String {
    signed_text(HS256, text, &secret(), Algorithm::HS256)
}

/// The token with another last part.
fn with_signature(token: &str, signature: &str) -> String {
    format!("{}.{signature}", token.rsplit_once('.').expect("three parts").0)
}

/// Names that do not say which algorithm a key is for.
fn wrong_algorithms() -> Vec<(String, String)> {
    let (good, all) = (claims(&json!({})), &claims(&json!({})).to_string());
    let unsigned = |alg: &str| with_signature(&signed(&json!({"alg": alg}), &good, &secret(), Algorithm::HS256), "");
    let mut found = Vec::new();
    for alg in ["none", "None", "NONE", "nOnE", "", "HS256"] {
        found.push((format!("alg {alg:?} without a signature"), unsigned(alg)));
    }
    for alg in ["none", "hs256", "HS256 ", "HS384", "HS512", "RS256", "ES256", "EdDSA", "PS256", "A128KW"] {
        found.push((format!("alg {alg:?} with the secret's HS256"), with_header(&json!({"alg": alg}))));
    }
    for alg in [json!(null), json!(7), json!(["HS256"]), json!({"HS256": true}), json!(true)] {
        found.push((format!("alg {alg}"), with_header(&json!({"alg": alg}))));
    }
    found.push(("no alg".to_owned(), with_header(&json!({"typ": "JWT"}))));
    found.push(("two algs".to_owned(), {
        signed_text(r#"{"alg":"none","alg":"HS256"}"#, all, &secret(), Algorithm::HS256)
    }));
    // The secret is for one algorithm of its family.
    for algorithm in [Algorithm::HS384, Algorithm::HS512] {
        found.push((
            format!("{algorithm:?} by the secret"),
            signed(&json!({"alg": algorithm}), &good, &secret(), algorithm),
        ));
    }
    // So is the public key.
    for algorithm in [Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512] {
        found.push((
            format!("{algorithm:?} by the key"),
            signed(&json!({"alg": algorithm}), &good, &rsa(RSA), algorithm),
        ));
    }
    // The public key as a shared secret: its text in every form that a program may have read it in, and its bytes.
    let body: String = RSA_PUBLIC.lines().filter(|line| !line.starts_with('-')).collect();
    let der = base64::prelude::BASE64_STANDARD.decode(&body).expect("base64");
    let crlf = RSA_PUBLIC.replace('\n', "\r\n");
    let forms = [RSA_PUBLIC.as_bytes(), RSA_PUBLIC.trim().as_bytes(), crlf.as_bytes(), body.as_bytes(), &der, b""];
    for (index, form) in forms.into_iter().enumerate() {
        for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            let key = EncodingKey::from_secret(form);
            let name = format!("the public key, form {index}, as the secret of {algorithm:?}");
            found.push((name, signed(&json!({"alg": algorithm}), &good, &key, algorithm)));
        }
    }
    found
}

/// Signatures of others, damaged ones, and none.
fn wrong_signatures() -> Vec<(String, String)> {
    let good = with_claims(&claims(&json!({})));
    let signature = good.rsplit_once('.').expect("three parts").1;
    let flipped = if signature.starts_with('A') { "B" } else { "A" };
    let parts: Vec<&str> = good.split('.').collect();
    let other = EncodingKey::from_secret(SECRET.to_uppercase().as_bytes());
    let theirs = |more: Value| {
        let mut header = json!({"alg": "RS256"});
        header.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        signed(&header, &claims(&json!({})), &rsa(RSA_NEXT), Algorithm::RS256)
    };
    let jwk = jsonwebtoken::jwk::Jwk::from_encoding_key(&rsa(RSA_NEXT), Algorithm::RS256).expect("a key");
    [
        ("no token", String::new()),
        ("no parts", "a".to_owned()),
        ("two parts", format!("{}.{}", parts[0], parts[1])),
        ("four parts", format!("{good}.{signature}")),
        ("five parts, as encrypted ones have", format!("{good}.{signature}.{signature}")),
        ("empty parts", "..".to_owned()),
        ("no header", format!(".{}.{}", parts[1], parts[2])),
        ("no claims", format!("{}..{}", parts[0], parts[2])),
        ("another secret", signed(&json!({"alg": "HS256"}), &claims(&json!({})), &other, Algorithm::HS256)),
        ("a flipped signature", with_signature(&good, &format!("{flipped}{}", &signature[1..]))),
        ("a short signature", with_signature(&good, &signature[..40])),
        ("a long signature", with_signature(&good, &format!("{signature}AA"))),
        ("a padded signature", with_signature(&good, &format!("{signature}="))),
        ("a signature of no base64", with_signature(&good, "!!!!")),
        ("other claims under the signature", {
            let claims = BASE64_URL_SAFE_NO_PAD.encode(claims(&json!({"sub": "root"})).to_string());
            format!("{}.{claims}.{}", parts[0], parts[2])
        }),
        ("another header under the signature", {
            let header = BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","kid":"x"}"#);
            format!("{header}.{}.{}", parts[1], parts[2])
        }),
        ("another RSA key", theirs(json!({}))),
        ("another RSA key that comes along", theirs(json!({"jwk": jwk}))),
        ("another RSA key at an address", theirs(json!({"jku": "http://127.0.0.1:9/jwks", "kid": "theirs"}))),
        ("another RSA key with a certificate", theirs(json!({"x5u": "http://127.0.0.1:9/x", "x5c": ["MII="]}))),
    ]
    .map(|(name, token)| (name.to_owned(), token))
    .into()
}

/// Claims and headers of wrong types, absent, out of range, or there twice.
fn wrong_contents() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (claim, values) in [
        ("exp", vec![json!(null), json!("9999999999"), json!(true), json!([9_999_999_999_i64]), json!({}), json!(-1)]),
        ("exp", vec![json!(0), json!(1), json!(now() - 3600), json!(now() - 61), json!(-9e300), json!(i64::MIN)]),
        ("nbf", vec![json!(null), json!("0"), json!(true), json!([0]), json!(now() + 61), json!(9e300)]),
        ("iat", vec![json!(null), json!("0"), json!([])]),
        ("sub", vec![json!(null), json!(7), json!(""), json!(["a"]), json!({}), json!("a\0b"), json!("a\nb")]),
        ("sub", vec![json!("x".repeat(256)), json!("\u{200b}".repeat(32)), json!("a\\u{200b}")]),
        (
            "sub",
            vec![json!("system"), json!("System"), json!(" system "), json!("sys\u{200b}tem"), json!("SYSTEM\u{2060}")],
        ),
        ("sub", vec![json!("callback"), json!("\u{202e}callback"), json!("API-Key:ci"), json!("\u{feff}api-key:ci")]),
        ("exp", vec![json!(253_402_300_800_i64), json!(9e15), json!(1e300), json!(u64::MAX)]),
        (
            "role",
            vec![json!(null), json!(7), json!(""), json!("root"), json!("Admin"), json!("admin "), json!(["admin"])],
        ),
        ("iss", vec![json!(null), json!(7), json!(["a"])]),
        ("aud", vec![json!(null), json!(7), json!([7]), json!({})]),
        ("jti", vec![json!(7)]),
    ] {
        for value in values {
            found.push((format!("{claim} {value}"), with_claims(&claims(&json!({claim: value})))));
        }
    }
    for claim in ["exp", "sub"] {
        let mut claims = claims(&json!({}));
        claims.as_object_mut().expect("an object").remove(claim);
        found.push((format!("no {claim}"), with_claims(&claims)));
    }
    let exp = now() + 300;
    for (name, text) in [
        ("no claims", String::new()),
        ("claims that are null", "null".to_owned()),
        ("claims that are a list", "[]".to_owned()),
        ("claims that are a text", "\"sub\"".to_owned()),
        ("claims that are no JSON", format!("{{sub:'a',exp:{exp}}}")),
        ("claims with something behind", format!(r#"{{"sub":"a","role":"admin","exp":{exp}}} {{}}"#)),
        ("two exp", format!(r#"{{"sub":"a","role":"admin","exp":1,"exp":{exp}}}"#)),
        ("two sub", format!(r#"{{"sub":"a","sub":"b","role":"admin","exp":{exp}}}"#)),
        ("two roles", format!(r#"{{"sub":"a","role":"viewer","role":"admin","exp":{exp}}}"#)),
        ("an exp that no number holds", r#"{"sub":"a","role":"admin","exp":1e999}"#.to_owned()),
        ("an exp that is no number", r#"{"sub":"a","role":"admin","exp":NaN}"#.to_owned()),
        ("a sub that is no text", r#"{"sub":"\ud800","role":"admin","exp":9999999999}"#.to_owned()),
    ] {
        found.push((name.to_owned(), with_claims_text(&text)));
    }
    for (name, header) in [
        ("kid 7", json!({"alg": "HS256", "kid": 7})),
        ("a list of kids", json!({"alg": "HS256", "kid": ["a"]})),
        ("crit exp", json!({"alg": "HS256", "crit": ["exp"]})),
        ("crit and b64", json!({"alg": "HS256", "crit": ["b64"], "b64": false})),
        ("an empty crit", json!({"alg": "HS256", "crit": []})),
        ("a crit that is null", json!({"alg": "HS256", "crit": null})),
        ("b64 without crit", json!({"alg": "HS256", "b64": false})),
        ("b64 that is no boolean", json!({"alg": "HS256", "b64": "false"})),
        ("zip", json!({"alg": "HS256", "zip": "DEF"})),
        ("a zip that is null", json!({"alg": "HS256", "zip": null})),
        ("typ null", json!({"alg": "HS256", "typ": null})),
        ("typ 7", json!({"alg": "HS256", "typ": 7})),
    ] {
        found.push((name.to_owned(), with_header(&header)));
    }
    for typ in [
        "",
        " ",
        "JWE",
        "JWT ",
        "jose",
        "JOSE+JSON",
        "logout+jwt",
        "LOGOUT+JWT",
        "secevent+jwt",
        "id+jwt",
        "dpop+jwt",
        "client-authentication+jwt",
        "token-introspection+jwt",
        "oauth-authz-req+jwt",
        "kb+jwt",
        "vc+sd-jwt",
        "statuslist+jwt",
        "entity-statement+jwt",
        "at+jwt2",
        "application/application/jwt",
        "text/jwt",
    ] {
        found.push((format!("typ {typ:?}"), with_header(&json!({"alg": "HS256", "typ": typ}))));
    }
    let two = r#"{"alg":"HS256","typ":"logout+jwt","typ":"JWT"}"#;
    found.push(("two typ".to_owned(), signed_text(two, &claims(&json!({})).to_string(), &secret(), Algorithm::HS256)));
    found.push(("a header that is a list".to_owned(), signed_text("[]", "{}", &secret(), Algorithm::HS256)));
    found.push(("a huge token".to_owned(), with_claims(&claims(&json!({"more": "x".repeat(9000)})))));
    found
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn no_token_of_the_attack_table_is_let_in(pool: PgPool) {
    let service = Service::start_with(config(&pool, &[("JWT_SECRET", SECRET), ("JWT_PUBLIC_KEY", RSA_PUBLIC)]));
    let table = [wrong_algorithms(), wrong_signatures(), wrong_contents()].concat();
    assert!(table.len() > 110, "{} entries", table.len());
    for (name, token) in table {
        // Twice: what was refused must not be remembered as verified.
        for _ in 0..2 {
            let answer = look(&service, &token).await;
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{name}: {}", answer.text);
            assert_eq!(answer.error(401)["code"], "unauthorized", "{name}");
        }
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn every_token_that_keeps_the_rules_is_let_in(pool: PgPool) {
    let service = Service::start_with(config(&pool, &[("JWT_SECRET", SECRET), ("JWT_PUBLIC_KEY", RSA_PUBLIC)]));
    let year_9999 = 253_402_300_799_i64;
    for (name, token) in [
        ("a plain one", with_claims(&claims(&json!({})))),
        ("one that is about to expire", with_claims(&claims(&json!({"exp": now() - 10})))),
        ("one that is for ever", with_claims(&claims(&json!({"exp": year_9999})))),
        ("one with a fraction", with_claims(&claims(&json!({"exp": now() as f64 + 300.5, "iat": 0.5, "nbf": 1.5})))),
        ("one from a clock that is ahead", with_claims(&claims(&json!({"nbf": now() + 10})))),
        ("one with more claims", with_claims(&claims(&json!({"iss": "x", "aud": ["y"], "jti": "z", "scope": [1]})))),
        ("one with deep claims that nobody reads", {
            let deep = format!("{}1{}", "[".repeat(500), "]".repeat(500));
            with_claims_text(&format!(r#"{{"sub":"a","role":"admin","exp":{},"deep":{deep}}}"#, now() + 300))
        }),
        ("one without a role", {
            signed(&json!({"alg": "HS256"}), &json!({"sub": "é", "exp": now() + 9}), &secret(), Algorithm::HS256)
        }),
        ("one with a typ", with_header(&json!({"alg": "HS256", "typ": "JWT"}))),
        ("one with a typ in small letters", with_header(&json!({"alg": "HS256", "typ": "jwt"}))),
        ("an access token", with_header(&json!({"alg": "HS256", "typ": "at+jwt"}))),
        ("an access token in full", with_header(&json!({"alg": "HS256", "typ": "application/at+JWT"}))),
        ("one with a payload in base64", with_header(&json!({"alg": "HS256", "b64": true}))),
        ("one of somebody with such a name", with_claims(&claims(&json!({"sub": "system-of-record"})))),
        ("one that names a key", with_header(&json!({"alg": "HS256", "kid": "../../../dev/null"}))),
        ("one of the public key", signed(&json!({"alg": "RS256"}), &claims(&json!({})), &rsa(RSA), Algorithm::RS256)),
    ] {
        for _ in 0..2 {
            let answer = look(&service, &token).await;
            assert_eq!(answer.status.as_u16(), 200, "{name}: {}", answer.text);
        }
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_subject_is_shown_with_what_hides_in_it(pool: PgPool) {
    let service = Service::start_with(config(&pool, &[("JWT_SECRET", SECRET)]));
    let token = format!("Bearer {}", with_claims(&claims(&json!({"sub": "al\u{200b}ice\u{202e}"}))));
    let headers = [("authorization", token.as_str()), ("content-type", "application/json")];
    let agent = json!({"name": "a", "url": "http://127.0.0.1:9/"}).to_string();
    let agent = service.send("POST", "/api/v1/agents", &headers, agent).await.expect(201);
    assert_eq!(agent["created_by"], "al\\u{200b}ice\\u{202e}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn each_kind_of_public_key_verifies_its_own_algorithm(pool: PgPool) {
    let keys = [
        (RSA_PUBLIC, rsa(RSA), Algorithm::RS256),
        (EC_PUBLIC, ec(), Algorithm::ES256),
        (ED_PUBLIC, ed(), Algorithm::EdDSA),
    ];
    for (public, _, own) in &keys {
        let service = Service::start_with(config(&pool, &[("JWT_PUBLIC_KEY", public)]));
        service.get("/api/v1/agents").await.error(401);
        for (_, private, algorithm) in &keys {
            let token = signed(&json!({"alg": algorithm}), &claims(&json!({})), private, *algorithm);
            let expected = if own == algorithm { 200 } else { 401 };
            assert_eq!(look(&service, &token).await.status.as_u16(), expected, "{algorithm:?} with a key for {own:?}");
        }
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn issuer_and_audience_have_to_fit_where_they_are_set(pool: PgPool) {
    let pairs = [("JWT_SECRET", SECRET), ("JWT_ISSUER", "https://idp.example/"), ("JWT_AUDIENCE", "workflows")];
    let settings = config(&pool, &pairs);
    let own = token::issue(&settings.auth, "someone", Role::Viewer, &OrganizationId::default(), Clock::default().now())
        .expect("there is a secret");
    let service = Service::start_with(settings);
    look(&service, &own).await.expect(200);
    let (iss, aud) = ("https://idp.example/", "workflows");
    for (status, more) in [
        (200, json!({"iss": iss, "aud": aud})),
        (200, json!({"iss": iss, "aud": ["others", aud]})),
        (401, json!({})),
        (401, json!({"iss": iss})),
        (401, json!({"aud": aud})),
        (401, json!({"iss": "https://idp.example", "aud": aud})),
        (401, json!({"iss": [iss], "aud": aud})),
        (401, json!({"iss": iss, "aud": ""})),
        (401, json!({"iss": iss, "aud": []})),
        (401, json!({"iss": iss, "aud": "workflows2"})),
        (401, json!({"iss": iss, "aud": [["workflows"]]})),
    ] {
        assert_eq!(look(&service, &with_claims(&claims(&more))).await.status.as_u16(), status, "{more}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_token_without_a_role_can_be_refused(pool: PgPool) {
    let service = Service::start_with(config(&pool, &[("JWT_SECRET", SECRET), ("JWT_DEFAULT_ROLE", "none")]));
    let token = with_claims(&json!({"sub": "someone", "exp": now() + 300}));
    look(&service, &token).await.error(401);
    look(&service, &with_claims(&claims(&json!({})))).await.expect(200);
}

#[test]
fn a_key_that_could_not_verify_stops_the_start() {
    let short = include_str!("keys/rsa-1024.pub.pem");
    let p384 = include_str!("keys/p384.pub.pem");
    for key in [RSA, super::EC, super::ED, short, p384, "rubbish", "-----BEGIN PUBLIC KEY-----"] {
        let problems = settings(&[("JWT_PUBLIC_KEY", key)]).expect_err("refused");
        assert!(problems.len() == 1 && problems[0].starts_with("  JWT_PUBLIC_KEY: "), "{problems:?}");
        assert!(!problems[0].contains("MII"), "{problems:?}");
    }
    for (name, value) in [("JWT_JWKS", "ftp://a/b"), ("JWT_JWKS", "/no/such/file"), ("JWT_DEFAULT_ROLE", "root")] {
        let problems = settings(&[("JWT_SECRET", SECRET), (name, value)]).expect_err("refused");
        assert!(problems.len() == 1 && problems[0].starts_with(&format!("  {name}: ")), "{problems:?}");
    }
    for key in [RSA_PUBLIC, EC_PUBLIC, ED_PUBLIC] {
        assert!(settings(&[("JWT_PUBLIC_KEY", key)]).is_ok_and(|auth| auth.enabled));
    }
}
