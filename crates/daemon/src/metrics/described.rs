//! Names, kinds and descriptions of all metrics. The dashboard and the alerts may use no others.

/// Kind of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// Description of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub text: &'static str,
}

impl Metric {
    /// Tells the recorder the description.
    pub(super) fn describe(&self) {
        match self.kind {
            Kind::Counter => metrics::describe_counter!(self.name, self.text),
            Kind::Gauge => metrics::describe_gauge!(self.name, self.text),
            Kind::Histogram => metrics::describe_histogram!(self.name, self.text),
        }
    }
}

const fn counter(name: &'static str, text: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, text }
}

const fn gauge(name: &'static str, text: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, text }
}

const fn histogram(name: &'static str, text: &'static str) -> Metric {
    Metric { name, kind: Kind::Histogram, text }
}

/// All metrics of control planes and host agents, by name.
pub const DESCRIBED: &[Metric] = &[
    gauge("wrenn_audit_entries_waiting", "Different events that wait for the audit log"),
    histogram("wrenn_boot_stage_seconds", "Stages of creates on the host"),
    counter("wrenn_boots_failed_total", "Creates that failed on the host"),
    histogram("wrenn_capsule_create_seconds", "Creates, from the placement to the running row"),
    histogram("wrenn_capsule_create_stage_seconds", "Stages of creates on the control plane"),
    counter("wrenn_capsule_creates_failed_total", "Creates that failed after their insert"),
    histogram("wrenn_capsule_fork_seconds", "Forks, with all of their capsules"),
    histogram("wrenn_capsule_fork_stage_seconds", "Stages of forks on the control plane"),
    histogram("wrenn_capsule_pause_seconds", "Pauses that the API asked for"),
    histogram("wrenn_capsule_pause_stage_seconds", "Stages of pauses on the control plane"),
    histogram("wrenn_capsule_resume_seconds", "Resumes, with their placement"),
    histogram("wrenn_capsule_resume_stage_seconds", "Stages of resumes on the control plane"),
    gauge("wrenn_certificate_expires_at_seconds", "End of a certificate, in seconds since 1970"),
    counter("wrenn_code_executions_total", "Executions of code that began over the API"),
    counter("wrenn_connections_refused_total", "Connections above a limit"),
    gauge("wrenn_database_connections", "Connections to the database, by state"),
    histogram("wrenn_database_probe_seconds", "Statements without work, every 10 s"),
    counter("wrenn_database_probes_failed_total", "Statements without work that failed"),
    counter("wrenn_deliveries_total", "Deliveries to channels, by outcome"),
    counter("wrenn_egress_full_total", "Connections of guests without a place"),
    counter("wrenn_egress_refused_total", "Connections of guests refused by name"),
    counter("wrenn_firecracker_receiving_throttled_total", "Times that a limit held up receiving"),
    counter("wrenn_firecracker_seccomp_faults_total", "System calls of Firecracker refused"),
    counter("wrenn_firecracker_sending_throttled_total", "Times that a limit held up sending"),
    counter("wrenn_firecracker_vcpu_failures_total", "Failed processors of guests"),
    gauge("wrenn_host_capsules", "Capsules on the host"),
    gauge("wrenn_host_capsules_in_state", "Capsules on the host, by state"),
    gauge("wrenn_host_disk_free_mib", "Free disk of the host's folder"),
    counter("wrenn_host_guests_stopped_for_room_total", "Guests stopped to keep disk free"),
    gauge("wrenn_host_kept_mib", "Disk of disks, snapshots and template snapshots"),
    gauge("wrenn_host_memory_limit_mib", "Memory for all capsules of the host"),
    gauge("wrenn_host_memory_mib", "Memory of the host's capsules"),
    counter("wrenn_host_namespaces_held_total", "Namespaces that another process held"),
    counter("wrenn_host_networks_taken_total", "Networks that capsules got, by origin"),
    gauge("wrenn_host_ready_capsules", "Ready capsules"),
    counter("wrenn_host_ready_dropped_total", "Ready capsules that ended unused, by reason"),
    counter("wrenn_host_ready_failed_total", "Failures of ready capsules, by step"),
    counter("wrenn_host_ready_made_total", "Ready capsules made"),
    counter("wrenn_host_ready_missed_total", "Creates that found no ready capsule"),
    gauge("wrenn_host_ready_networks", "Networks made ahead"),
    counter("wrenn_host_ready_taken_total", "Creates that took a ready capsule"),
    counter("wrenn_host_stats_dropped_total", "Batches of stats that were dropped"),
    gauge("wrenn_host_uploads_waiting", "Folders that wait for their upload to the store"),
    gauge("wrenn_hosts", "Hosts as the replica knows them, by state"),
    histogram("wrenn_http_request_seconds", "Requests to the API, by method and route"),
    counter("wrenn_http_requests_total", "Requests to the API, by method, route and status"),
    counter("wrenn_machines_lost_total", "Machines that ended by themselves"),
    gauge("wrenn_operations_under_way", "Operations under way on the control plane"),
    histogram("wrenn_pause_seconds", "Pauses on the host until the snapshot is complete"),
    histogram("wrenn_pause_stage_seconds", "Stages of pauses on the host"),
    counter("wrenn_pauses_failed_total", "Pauses that failed on the host"),
    counter("wrenn_proxy_lookups_total", "Look-ups of routes in the database"),
    counter("wrenn_proxy_requests_total", "Requests for capsules' ports, by outcome"),
    counter("wrenn_removals_failed_total", "Removals that left something"),
    counter("wrenn_requests_cut_total", "Requests that the end of their capsule ended"),
    histogram("wrenn_resume_stage_seconds", "Stages of resumes from memory on the host"),
    counter("wrenn_resumes_failed_total", "Resumes that failed on the host"),
    histogram("wrenn_snapshot_frozen_seconds", "Times that a capsule stood still for a snapshot"),
    counter("wrenn_spans_total", "Spans of traces, by outcome"),
    histogram("wrenn_store_seconds", "Transfers of folders to the store and from it"),
    counter("wrenn_stored_bytes_total", "Bytes sent to the store"),
];
