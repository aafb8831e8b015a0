//! Detection of unknown settings: misspelt names in the environment, or names that only look like settings.

use std::collections::HashSet;

use super::{NAMES, files::SECRETS, reader::KAFKA_PROPERTY};

/// Prefixes of setting names. `KAFKA_` is included; `MAX_` would match too many foreign variables.
const PREFIXES: [&str; 13] = [
    "API_",
    "AUTH_",
    "CIRCUIT_BREAKER_",
    "CORS_",
    "DATABASE_",
    "DEFAULT_AGENT_",
    "EGRESS_",
    "ENABLE_",
    "JWT_",
    "KAFKA_",
    "LOG_",
    "QUOTA_",
    "RATE_LIMIT_",
];

/// Maximum edit distance (wrong, missing, swapped or additional letters) between a misspelt name and a setting.
const MAX_MISSPELT: usize = 2;

/// One line for each name in the environment that looks like a setting and is not read.
pub fn unknown_names(environment: impl Iterator<Item = (String, String)>) -> Vec<String> {
    let names: Vec<String> = environment.map(|(name, _)| name.to_ascii_uppercase()).collect();
    let mut known: HashSet<String> = NAMES.iter().map(|name| name.to_ascii_uppercase()).collect();
    known.extend(SECRETS.iter().map(|name| format!("{}_FILE", name.to_ascii_uppercase())));
    // Further variables that compose files use.
    known.extend(["API_CONTAINER_NAME", "API_ENV_FILE", "API_PORTS"].map(str::to_owned));
    let mut lines: Vec<String> = names
        .iter()
        .filter(|name| !known.contains(*name) && !name.starts_with(KAFKA_PROPERTY) && !is_of_kubernetes(name))
        .filter_map(|name| {
            let distance = |known: &&String| strsim::osa_distance(name, known);
            let nearest = known.iter().min_by_key(|known| (distance(known), known.len(), (*known).clone()))?;
            // In a short name, two different letters make a different word.
            if distance(&nearest) <= MAX_MISSPELT.min(name.len() / 4) {
                Some(format!("{name} is not a setting and has no effect; did you mean {nearest}?"))
            } else {
                let is_ours = PREFIXES.iter().any(|prefix| name.starts_with(prefix));
                is_ours.then(|| format!("{name} is not a setting and has no effect"))
            }
        })
        .collect();
    lines.sort_unstable();
    lines.dedup();
    lines
}

/// Whether Kubernetes (or a Docker link) sets the name for a service: `KAFKA_SERVICE_HOST`, `API_PORT_8000_TCP_ADDR`.
fn is_of_kubernetes(name: &str) -> bool {
    let is_port = |text: &str| {
        let mut parts = text.split('_');
        parts.next().is_some_and(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
            && matches!(parts.next(), Some("TCP" | "UDP" | "SCTP"))
    };
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
        || name.match_indices("_PORT_").any(|(at, found)| is_port(&name[at + found.len()..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(names: &[&str]) -> Vec<String> {
        unknown_names(names.iter().map(|name| ((*name).to_owned(), "x".to_owned())))
    }

    #[test]
    fn misspelt_settings_are_found_and_variables_of_other_programs_are_not() {
        assert_eq!(
            found(&["KAFKA_BROKER", "JWT_SECERT", "DATABASE_POOLSIZE", "MAX_PAGESIZE", "api_prot"]),
            [
                "API_PROT is not a setting and has no effect; did you mean API_PORT?",
                "DATABASE_POOLSIZE is not a setting and has no effect; did you mean DATABASE_POOL_SIZE?",
                "JWT_SECERT is not a setting and has no effect; did you mean JWT_SECRET?",
                "KAFKA_BROKER is not a setting and has no effect; did you mean KAFKA_BROKERS?",
                "MAX_PAGESIZE is not a setting and has no effect; did you mean MAX_PAGE_SIZE?",
            ]
        );
        assert_eq!(found(&["KAFKA_COLOUR_OF_LOGO"]), ["KAFKA_COLOUR_OF_LOGO is not a setting and has no effect"]);
        assert_eq!(found(&["JWT_SECRET_FILE", "LOG_LEVEL", "PATH", "HOME", "HOSTNAME", "LANG", "PWD"]), [""; 0]);
    }

    #[test]
    fn variables_that_kubernetes_sets_for_services_are_not_settings() {
        let set = ["KAFKA_SERVICE_HOST", "KAFKA_SERVICE_PORT_BROKER", "API_PORT_8000_TCP_ADDR", "KAFKA_PORT"];
        assert_eq!(found(&set), [""; 0]);
    }
}
