-- That the agent drains: one row, or none.
CREATE TABLE drain (
    one    INTEGER PRIMARY KEY CHECK (one = 1),
    since  INTEGER NOT NULL,
    caller TEXT NOT NULL,
    reason TEXT NOT NULL
) STRICT;
