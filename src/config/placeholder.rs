//! Detection of signing secrets that are not random: placeholders of examples, repetitions, sequences.

use std::collections::BTreeSet;

/// Words that request a replacement. One of them is enough.
const REQUESTS: [&str; 15] = [
    "change",
    "changeme",
    "changeit",
    "default",
    "dummy",
    "example",
    "fixme",
    "generate",
    "insert",
    "openssl",
    "placeholder",
    "replace",
    "sample",
    "todo",
    "your",
];

/// Filler words of such texts. They add no randomness.
const FILLERS: [&str; 24] = [
    "api",
    "app",
    "at",
    "auth",
    "char",
    "chars",
    "dev",
    "development",
    "hs256",
    "in",
    "jwt",
    "key",
    "least",
    "min",
    "my",
    "password",
    "prod",
    "production",
    "random",
    "secret",
    "string",
    "super",
    "this",
    "token",
];

/// Minimum length of a word's beginning that does not occur in random text, so that `changethis` is found too.
const MIN_STEM: usize = 6;

/// Number of characters that must remain without the fillers, and number of different ones among them.
const MIN_CHARACTERS: usize = 16;
const MIN_DISTINCT: usize = 8;

/// A word of this length does not occur twice in random text.
const MIN_REPEATED: usize = 4;

const REPEATS: &str = "repeats itself or is a sequence of neighbouring characters";

/// Reason why the text is not a secret, or `None`. Random text of 32 characters passes, in hex as well.
pub(super) fn reason(secret: &str) -> Option<&'static str> {
    let secret = secret.to_ascii_lowercase();
    let words: Vec<&str> = secret.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let asks = |word: &&str| {
        REQUESTS.iter().any(|request| word == request || request.len() >= MIN_STEM && word.starts_with(request))
    };
    if words.iter().any(asks) {
        return Some("is a placeholder of an example");
    }
    if words.iter().enumerate().any(|(at, word)| word.len() >= MIN_REPEATED && words[..at].contains(word)) {
        return Some(REPEATS);
    }
    let rest: String = words.into_iter().filter(|word| !FILLERS.contains(word)).map(without_fillers).collect();
    if rest.chars().count() < MIN_CHARACTERS || rest.chars().collect::<BTreeSet<_>>().len() < MIN_DISTINCT {
        return Some("is made of common words or of few different characters");
    }
    if has_period(&secret) || is_sequence(&rest) {
        return Some(REPEATS);
    }
    None
}

/// Removes fillers inside of the word that are too long to occur in random text.
fn without_fillers(word: &str) -> String {
    let long = FILLERS.iter().filter(|filler| filler.len() >= MIN_STEM);
    long.fold(word.to_owned(), |rest, filler| rest.replace(filler, ""))
}

/// Whether the text repeats a part of at most half its length.
fn has_period(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=bytes.len() / 2).any(|period| bytes[period..] == bytes[..bytes.len() - period])
}

/// Whether most characters are equal to their predecessor or its neighbour in the alphabet or on a keyboard.
fn is_sequence(text: &str) -> bool {
    const ROWS: [&str; 4] = ["qwertyuiop", "asdfghjkl", "zxcvbnm", "1234567890"];
    let characters: Vec<char> = text.chars().collect();
    let is_near = |pair: &[char]| {
        let pair_text: String = pair.iter().collect();
        u32::from(pair[0]).abs_diff(u32::from(pair[1])) <= 1 || ROWS.iter().any(|row| row.contains(&pair_text))
    };
    characters.windows(2).filter(|pair| is_near(pair)).count() * 2 > characters.len()
}

#[cfg(test)]
mod tests {
    use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

    use super::*;

    #[test]
    fn placeholders_repeats_and_sequences_are_distinguished_from_secrets() {
        for placeholder in [
            "CHANGE_THIS_TO_RANDOM_64_CHAR_STRING_MIN",
            "your-secret-key-change-in-production",
            "your-super-secret-jwt-key-change-this-in-production",
            "changeme-changeme-changeme-changeme",
            "use-openssl-rand-hex-32-to-generate-a-secret",
            "<generate-with-openssl-rand-hex-32-and-keep-it>",
            "secret-secret-secret-secret-secret-secret",
            "my-super-secret-jwt-key-for-production-2024",
            "REPLACE_ME_WITH_A_REAL_SECRET_OF_64_CHARACTERS",
            "ReplaceThisWithSomethingElseBeforeTheRelease!",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "xxxxxxxxxxxxxxxx-xxxxxxxxxxxxxxxx-xxxxxxxxxxxx",
            "0123456789abcdef0123456789abcdef",
            "abcdefghijklmnopqrstuvwxyz0123456789",
            "qwertyuiopasdfghjklzxcvbnm1234567890",
            "d41d8cd98f00b204d41d8cd98f00b204",
            "00000000000000000000000000000001",
            "passwordpasswordpasswordpassword12",
            "mysupersecretpasswordforproduction",
            "correct-horse-battery-staple-correct-horse",
        ] {
            assert!(reason(placeholder).is_some(), "{placeholder}");
        }
        for secret in [
            "b7e0c5a4d1f28396047be1a9c3d5f6e8b2a1908f7c6d5e4f3a2b1c0d9e8f7a6b",
            "9f86d081884c7d659a2feaa0c55ad015",
            "kJ8vQ2mZ+x7LpR4tW1yB6nC9dF3gH5sA/0uE=iOqTzM",
            "unruffled harpist donut magnolia crevice",
            "37281946501928374650918273640519",
        ] {
            assert_eq!(reason(secret), None, "{secret}");
        }
    }

    #[test]
    fn random_secrets_of_the_documented_command_pass() {
        // A fixed seed: one in some millions of the short secrets looks like a sequence.
        let mut random = StdRng::seed_from_u64(1);
        for _ in 0..10_000 {
            let bytes: [u8; 32] = random.random();
            let hex = bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
            assert_eq!(reason(&hex), None, "{hex}");
            assert_eq!(reason(&hex[..32]), None, "{hex}");
        }
    }
}
