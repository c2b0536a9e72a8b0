"""Writes the scripts of a database as each older version of it would have them: older.py AGENT.DB FOLDER.

The older versions are made by their own steps, src/store/steps/N-*.sql; the columns that they have are filled, and the
steps that come later find what they found then.
"""

import glob
import re
import sqlite3
import sys

path, folder = sys.argv[1:]
newest = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
newest.row_factory = sqlite3.Row
rows = newest.execute("SELECT * FROM scripts ORDER BY seq").fetchall()
last = newest.execute("PRAGMA user_version").fetchone()[0]
steps = sorted(glob.glob("src/store/steps/*.sql"))

for version in range(1, last):
    older = sqlite3.connect(":memory:")
    for step in steps[:version]:
        older.executescript(open(step, encoding="utf-8").read())
    columns = [column[1] for column in older.execute("PRAGMA table_info(scripts)")]
    marks = ", ".join("?" * len(columns))
    for row in rows:
        values = [row[column] for column in columns]
        older.execute(f"INSERT INTO scripts ({', '.join(columns)}) VALUES ({marks})", values)
    older.commit()
    text = "\n".join(older.iterdump())
    text = re.sub(r"\ACOMMIT;\Z", "", text)
    with open(f"{folder}/database-{version}.sql", "w", encoding="utf-8") as out:
        out.write(f"{text}\nPRAGMA user_version = {version};\n")
