//! Step path: the way to a nested step, `<step>/<branch>/<step>/<branch>/…/<step>`. It distinguishes the rows of one
//! step in many iterations and branches.

use std::borrow::Cow;

/// Step path of a step in a branch with this prefix. `repeats`: number of earlier mentions of the step in the branch.
pub(in crate::executor) fn step(prefix: &str, step_id: &str, repeats: usize) -> String {
    let step_id = escaped(step_id);
    if repeats == 0 { format!("{prefix}{step_id}") } else { format!("{prefix}{step_id}#{}", repeats + 1) }
}

/// Id of the step at this path.
pub(in crate::executor) fn step_id(path: &str) -> Cow<'_, str> {
    let last = path.rsplit('/').next().unwrap_or(path);
    let id = last.split('#').next().unwrap_or(last);
    if id.contains('%') { id.replace("%23", "#").replace("%2F", "/").replace("%25", "%").into() } else { id.into() }
}

/// Prefix of the step paths in a branch of the block at this path.
pub(super) fn branch(path: &str, name: &str) -> String {
    format!("{path}/{}/", escaped(name))
}

/// Escapes names of branches and ids stored by other programs, which can have any characters.
fn escaped(name: &str) -> String {
    name.replace('%', "%25").replace('/', "%2F").replace('#', "%23")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_step_paths_are_the_same() {
        let fork = step("", "fork", 0);
        assert_eq!(step(&branch(&fork, "north"), "a", 1), "fork/north/a#2");
        assert_ne!(step(&branch(&fork, "a/b"), "c", 0), step(&branch("fork/a", "b"), "c", 0));
        assert_ne!(step("", "a#2", 0), step("", "a", 1));
        assert_ne!(branch("f", "%2F"), branch("f", "/"));
    }

    #[test]
    fn a_step_path_has_the_id_of_its_step() {
        for id in ["a", "a#2", "a/b", "%2F", "%"] {
            assert_eq!(step_id(&step(&branch("fork", "no#rth"), id, 2)), id);
            assert_eq!(step_id(&step("", id, 0)), id);
        }
    }
}
