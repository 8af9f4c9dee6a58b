CREATE TABLE wipe_certificates (
  sequence INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  machine TEXT NOT NULL,
  serial TEXT NOT NULL,
  wwn TEXT NOT NULL,
  level TEXT NOT NULL,
  sanitization TEXT NOT NULL,
  successful INTEGER NOT NULL,
  document BLOB NOT NULL
);
CREATE INDEX wipe_certificates_machine ON wipe_certificates (machine, sequence);
CREATE INDEX wipe_certificates_disk ON wipe_certificates (serial, wwn, sequence);
