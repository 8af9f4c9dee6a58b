CREATE TABLE machines (
  name TEXT PRIMARY KEY,
  uuid TEXT UNIQUE,
  status INTEGER NOT NULL,
  lock_team TEXT NOT NULL,
  job_id TEXT NOT NULL,
  bmc_password BLOB,
  created INTEGER NOT NULL,
  updated INTEGER NOT NULL,
  body BLOB NOT NULL
);
CREATE TABLE machine_macs (
  mac TEXT PRIMARY KEY,
  machine TEXT NOT NULL
);
CREATE INDEX machine_macs_machine ON machine_macs (machine);
CREATE TABLE leases (
  mac TEXT PRIMARY KEY,
  machine TEXT NOT NULL,
  address TEXT NOT NULL UNIQUE,
  created INTEGER NOT NULL
);
CREATE TABLE addresses (
  network TEXT NOT NULL,
  address TEXT NOT NULL,
  machine TEXT NOT NULL,
  created INTEGER NOT NULL,
  PRIMARY KEY (network, address)
);
CREATE INDEX addresses_machine ON addresses (machine);
CREATE TABLE boots (
  machine TEXT PRIMARY KEY,
  job_id TEXT NOT NULL,
  round INTEGER NOT NULL,
  created INTEGER NOT NULL,
  expires INTEGER NOT NULL,
  enrolled INTEGER NOT NULL,
  heard INTEGER NOT NULL,
  boot_id TEXT NOT NULL,
  key_hash BLOB,
  certificate_hash BLOB
);
CREATE TABLE jobs (
  id TEXT PRIMARY KEY,
  machine TEXT NOT NULL,
  kind INTEGER NOT NULL,
  status INTEGER NOT NULL,
  created INTEGER NOT NULL,
  deadline INTEGER NOT NULL,
  boot_round INTEGER NOT NULL,
  token_hash BLOB UNIQUE,
  phoned INTEGER NOT NULL,
  owner TEXT NOT NULL,
  epoch INTEGER NOT NULL,
  lease_expires INTEGER NOT NULL,
  body BLOB NOT NULL
);
CREATE INDEX jobs_created ON jobs (created, id);
CREATE INDEX jobs_machine ON jobs (machine, created);
CREATE INDEX jobs_status ON jobs (status);
CREATE TABLE steps (
  id TEXT PRIMARY KEY,
  job_id TEXT NOT NULL,
  idx INTEGER NOT NULL,
  boot_id TEXT NOT NULL,
  spec BLOB NOT NULL,
  body BLOB NOT NULL,
  UNIQUE (job_id, idx)
);
CREATE TABLE actions (
  job_id TEXT NOT NULL,
  scope TEXT NOT NULL,
  kind TEXT NOT NULL,
  done INTEGER NOT NULL,
  tries INTEGER NOT NULL,
  intended INTEGER NOT NULL,
  error TEXT NOT NULL,
  PRIMARY KEY (job_id, scope, kind)
);
CREATE TABLE events (
  sequence INTEGER PRIMARY KEY AUTOINCREMENT,
  time INTEGER NOT NULL,
  type TEXT NOT NULL,
  severity INTEGER NOT NULL,
  machine TEXT NOT NULL,
  job_id TEXT NOT NULL,
  step_id TEXT NOT NULL,
  message TEXT NOT NULL,
  data BLOB,
  key TEXT UNIQUE
);
CREATE INDEX events_machine ON events (machine, sequence);
CREATE INDEX events_job ON events (job_id, sequence);
CREATE TABLE reports (
  machine TEXT NOT NULL,
  boot_id TEXT NOT NULL,
  acknowledged INTEGER NOT NULL,
  updated INTEGER NOT NULL,
  PRIMARY KEY (machine, boot_id)
);
CREATE TABLE requests (
  id TEXT PRIMARY KEY,
  job_id TEXT NOT NULL,
  created INTEGER NOT NULL
);
CREATE TABLE operations (
  id TEXT PRIMARY KEY,
  created INTEGER NOT NULL
);
