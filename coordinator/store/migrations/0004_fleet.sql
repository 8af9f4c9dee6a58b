ALTER TABLE machines ADD COLUMN changed INTEGER NOT NULL DEFAULT 0;
CREATE INDEX machines_changed ON machines (changed);
CREATE TABLE machine_removals (
  name TEXT PRIMARY KEY,
  changed INTEGER NOT NULL
);
CREATE INDEX machine_removals_changed ON machine_removals (changed);
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
