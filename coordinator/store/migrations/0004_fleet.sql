ALTER TABLE machines ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;
CREATE TABLE inventories (
  machine TEXT NOT NULL,
  taken INTEGER NOT NULL,
  seen INTEGER NOT NULL,
  job_id TEXT NOT NULL,
  body BLOB NOT NULL,
  PRIMARY KEY (machine, taken)
);
CREATE TABLE views (
  name TEXT PRIMARY KEY,
  body BLOB NOT NULL
);
