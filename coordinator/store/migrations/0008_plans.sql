CREATE TABLE job_plans (
  job_id TEXT PRIMARY KEY,
  plan BLOB NOT NULL,
  secrets BLOB
);
