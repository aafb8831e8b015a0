//! Where a step stands in a run: `<step>/<branch>/<step>/<branch>/…/<step>`, which is what tells the rows of one step
//! in many iterations and branches apart.

/// The place of a step in a branch whose places begin so. `repeats`: how often the branch has had the step before.
pub(super) fn step(prefix: &str, step_id: &str, repeats: usize) -> String {
    let step_id = escaped(step_id);
    if repeats == 0 { format!("{prefix}{step_id}") } else { format!("{prefix}{step_id}#{}", repeats + 1) }
}

/// What the places in a branch of the block at this place begin with.
pub(super) fn branch(place: &str, name: &str) -> String {
    format!("{place}/{}/", escaped(name))
}

/// Names of branches, and ids that other programs have stored, can have any characters.
fn escaped(name: &str) -> String {
    name.replace('%', "%25").replace('/', "%2F").replace('#', "%23")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_places_are_the_same() {
        let fork = step("", "fork", 0);
        assert_eq!(step(&branch(&fork, "north"), "a", 1), "fork/north/a#2");
        assert_ne!(step(&branch(&fork, "a/b"), "c", 0), step(&branch("fork/a", "b"), "c", 0));
        assert_ne!(step("", "a#2", 0), step("", "a", 1));
        assert_ne!(branch("f", "%2F"), branch("f", "/"));
    }
}
