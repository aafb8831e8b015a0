//! A run and its sub-runs, as far as they go on: the SQL that finds what they wait for.

/// The common table expression `family`: the runs of this query, and the sub-runs below them that go on.
macro_rules! family {
    ($root:literal) => {
        concat!(
            "family (run_id) AS (",
            $root,
            " UNION ALL
                SELECT child.run_id FROM family
                    JOIN workflow_runs child ON child.parent_run_id = family.run_id AND child.status = 'RUNNING'
            ) "
        )
    };
}

/// What follows `SELECT …` after [`family!`]: the questions `w` of up to 1000 runs that nobody has answered. Each run
/// is looked up by itself, whatever the statistics say.
macro_rules! questions_of_family {
    () => {
        "FROM (SELECT run_id FROM family LIMIT 1000) AS member, LATERAL (
            SELECT w.*, s.input_data
            FROM step_waits w JOIN step_executions s ON s.id = w.attempt_id AND s.status = 'PENDING'
            WHERE w.run_id = member.run_id AND w.token IS NOT NULL AND w.answered_at IS NULL
                AND coalesce(w.due_at > now(), true)
            OFFSET 0
        ) AS w"
    };
}

pub(super) use {family, questions_of_family};
