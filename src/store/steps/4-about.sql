-- Who wrote the database, for a baton that is older than it: that one reads this table, so it stays as it is.
CREATE TABLE about (
    key   TEXT PRIMARY KEY,                         -- 'baton': the version that opened it last
    value TEXT NOT NULL
) STRICT;
