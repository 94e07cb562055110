-- Metrics of capsules and hosts over time. Each table has a partition for each day in UTC. The
-- leader makes partitions ahead and drops old ones, so that no row is deleted by itself.

-- No program used this table.
DROP TABLE capsule_metrics;

-- A row for each minute in which a capsule ran, with a sample for each 5 s.
CREATE TABLE stats_fine (
    capsule_id uuid NOT NULL,
    -- Beginning of the minute.
    at timestamptz NOT NULL,
    -- Bytes on the capsule's network in the minute.
    received bigint,
    sent bigint,
    -- OOM kills: of the VMM, and by the guest's kernel as the guest reports.
    oom_kills integer NOT NULL,
    guest_oom_kills integer NOT NULL,
    -- Largest values of the minute, as the guest reports.
    cache_kib integer,
    disk_kib integer,
    -- Bit `n` is set if there is a sample of second `5 n`. The arrays have these samples in order.
    slots smallint NOT NULL,
    -- Bit `n` is set if that sample is the first of a machine.
    begins smallint NOT NULL,
    -- True if the host counted processor and memory of all samples. Otherwise they are the guest's
    -- words.
    from_host boolean NOT NULL,
    -- Use of all of the capsule's processors, from 0 to 100.
    cpu real[] NOT NULL,
    memory_kib integer[] NOT NULL,
    -- NULL where the guest told nothing.
    guest_memory_kib integer[] NOT NULL,
    PRIMARY KEY (capsule_id, at)
) PARTITION BY RANGE (at);
-- Rows come nearly in the order of their time, so a small index finds the rows of an hour.
CREATE INDEX stats_fine_by_time ON stats_fine USING brin (at) WITH (pages_per_range = 32);

-- A row for each 5 minutes in which a capsule ran, from `stats_fine`. Sizes are the largest ones.
CREATE TABLE stats_coarse (
    capsule_id uuid NOT NULL,
    -- Beginning of the 5 minutes.
    at timestamptz NOT NULL,
    received bigint,
    sent bigint,
    -- Number of samples, at most 60.
    samples integer NOT NULL,
    cpu_mean real NOT NULL,
    cpu_max real NOT NULL,
    memory_kib integer NOT NULL,
    guest_memory_kib integer,
    cache_kib integer,
    disk_kib integer,
    oom_kills integer NOT NULL,
    guest_oom_kills integer NOT NULL,
    from_host boolean NOT NULL,
    -- True if a machine began.
    begins boolean NOT NULL,
    PRIMARY KEY (capsule_id, at)
) PARTITION BY RANGE (at);

-- A row for each 5 minutes of a host, from its heartbeats and the rows of its capsules.
CREATE TABLE stats_hosts (
    host_id uuid NOT NULL,
    at timestamptz NOT NULL,
    -- Average number of runnable processes, multiplied by 100.
    cpu_load_percent integer NOT NULL,
    free_memory_mib bigint NOT NULL,
    free_disk_mib bigint NOT NULL,
    -- Capsules that are neither removed nor paused, with their processors and memory.
    capsules integer NOT NULL,
    used_vcpus integer NOT NULL,
    used_memory_mib bigint NOT NULL,
    PRIMARY KEY (host_id, at)
) PARTITION BY RANGE (at);
