//! Where a step stands in a run: `<step>/<branch>/<step>/<branch>/…/<step>`, which is what tells the rows of one step
//! in many iterations and branches apart.

use std::borrow::Cow;

/// The place of a step in a branch whose places begin so. `repeats`: how often the branch has had the step before.
pub(super) fn step(prefix: &str, step_id: &str, repeats: usize) -> String {
    let step_id = escaped(step_id);
    if repeats == 0 { format!("{prefix}{step_id}") } else { format!("{prefix}{step_id}#{}", repeats + 1) }
}

/// The step at a place.
pub(in crate::executor) fn step_id(path: &str) -> Cow<'_, str> {
    let last = path.rsplit('/').next().unwrap_or(path);
    let id = last.split('#').next().unwrap_or(last);
    if id.contains('%') { id.replace("%23", "#").replace("%2F", "/").replace("%25", "%").into() } else { id.into() }
}

/// What the places in a branch of the block at this place begin with.
pub(super) fn branch(path: &str, name: &str) -> String {
    format!("{path}/{}/", escaped(name))
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

    #[test]
    fn a_place_tells_its_step() {
        for id in ["a", "a#2", "a/b", "%2F", "%"] {
            assert_eq!(step_id(&step(&branch("fork", "no#rth"), id, 2)), id);
            assert_eq!(step_id(&step("", id, 0)), id);
        }
    }
}
