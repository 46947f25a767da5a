//! What a client of etcd may rely on, as one list of cases that each target has to pass.
//!
//! Each case is written once and first tried on a real etcd: if etcd fails a case, the case is wrong. Cases in `shared`
//! use their own keys on one common server. Those in `own` compact, need settings, or count revisions. Targets of later
//! etcd lines are skipped if this machine does not have that etcd. The name of a test contains target and case:
//! `conformance::relay_over_etcd::duplicate_id_is_refused`.

mod catch_up;
mod compaction;
mod create;
mod options;
mod progress;
mod range;
mod stream;
mod writes;

use crate::support::target::{Kind, Line, Settings, Target};

/// Expands to all tests of a target.
macro_rules! target {
    ($target:ident, $kind:expr; shared: $($file:ident::$case:ident),*; own: $($own_file:ident::$own_case:ident $(with $settings:expr)?),*) => {
        mod $target {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    let Some(target) = Target::shared($kind).await else { return };
                    let _logs = LogsOnPanic(target);
                    $file::$case(target).await;
                }
            )*
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $own_case() {
                    #[allow(unused_mut, unused_assignments, reason = "only used if the case has settings")]
                    let mut settings = Settings::default();
                    $( settings = $settings; )?
                    let Some(target) = Target::start($kind, settings).await else { return };
                    $own_file::$own_case(&target).await;
                }
            )*
        }
    };
}

/// The list of cases, for each target.
macro_rules! targets {
    ($($target:ident = $kind:expr),* $(,)?) => {
        $( target! { $target, $kind;
            shared:
                create::ids_count_from_zero,
                create::a_chosen_id_is_kept,
                create::automatic_ids_step_over_chosen_ones,
                create::duplicate_id_is_refused,
                create::an_id_can_be_used_again_after_cancel,
                create::empty_ranges_are_refused,
                create::answers_come_in_the_order_of_requests,
                create::created_headers_say_who_and_when,
                create::a_watch_is_there_once_created_is_answered,
                stream::a_single_key_watch_sees_that_key_alone,
                stream::a_prefix_watch_sees_the_prefix_alone,
                stream::range_end_zero_is_every_key_from_the_first_on,
                stream::an_interval_ends_before_its_end,
                stream::an_empty_key_is_the_zero_key,
                stream::a_request_without_content_is_ignored,
                stream::half_close_keeps_the_stream,
                stream::cancel_ends_one_watch_and_no_other,
                stream::cancel_of_an_unknown_id_is_not_answered,
                stream::watches_of_one_stream_are_independent,
                stream::streams_of_one_connection_are_independent,
                stream::live_headers_carry_the_revision_of_their_events,
                stream::a_transaction_arrives_whole_and_in_order,
                stream::a_delete_of_many_keys_arrives_whole,
                stream::leader_wanted_and_there_changes_nothing,
                catch_up::a_past_start_replays_from_there,
                catch_up::a_future_start_waits_for_its_revision,
                catch_up::many_revisions_are_replayed_without_a_gap,
                catch_up::replay_meets_live_events_without_a_seam,
                catch_up::late_watch_beside_a_live_one_loses_nothing,
                options::noput_leaves_puts_out,
                options::nodelete_leaves_deletes_out,
                options::both_filters_leave_nothing,
                options::prev_kv_of_changes_and_deletes,
                options::prev_kv_only_for_who_asked,
                options::prev_kv_within_a_replay,
                options::large_transactions_are_fragmented_for_who_asked,
                progress::a_request_is_answered_for_the_whole_stream,
                progress::a_request_without_watches_is_not_answered,
                progress::a_future_watch_silences_progress,
                progress::progress_comes_after_the_events_it_covers,
                range::malformed_requests_are_refused_in_the_same_words,
                range::unknown_sort_options_never_reach_etcd,
                range::a_read_sees_the_write_before_it,
                range::a_read_of_the_past_shows_the_past,
                writes::put_answers_with_what_was_asked,
                writes::put_keeps_value_or_lease_where_told,
                writes::delete_counts_and_shows_what_it_took,
                writes::transactions_compare_and_branch,
                writes::refused_writes_use_the_same_words,
                writes::a_lease_that_ends_deletes_its_keys,
                writes::a_lease_that_is_kept_alive_lives,
                writes::a_revoked_lease_deletes_its_keys_as_one_revision;
            own:
                compaction::a_compacted_start_is_refused_with_the_revision,
                compaction::the_compact_revision_itself_can_be_watched,
                compaction::a_compacted_watch_keeps_its_id_until_canceled,
                compaction::a_compacted_watch_leaves_others_alone,
                compaction::a_compacted_watch_silences_progress_until_canceled,
                compaction::a_live_watch_survives_compaction,
                compaction::prev_kv_of_the_compact_revision_is_gone,
                compaction::a_read_of_the_compacted_past_is_refused,
                compaction::compaction_is_refused_in_the_same_words,
                create::negative_start_revision_is_refused,
                progress::progress_is_told_to_who_asked with FAST_PROGRESS,
                progress::a_watch_exactly_one_ahead_is_told_nothing_below_its_start with FAST_PROGRESS,
                range::answers_as_etcd_does
        } )*
    };
}

/// Progress notifications every 100 ms instead of every 10 min.
const FAST_PROGRESS: Settings = Settings {
    etcd: &["--experimental-watch-progress-notify-interval=100ms"],
    relay: &["--progress-notify-interval=100ms"],
};

targets! {
    etcd = Kind::Etcd,
    etcd_3_7 = Kind::EtcdOf(Line::V3_7),
    store = Kind::Store,
    relay_over_etcd = Kind::RelayOverEtcd,
    relay_over_etcd_3_6 = Kind::RelayOverEtcdOf(Line::V3_6),
    relay_over_etcd_3_7 = Kind::RelayOverEtcdOf(Line::V3_7),
    relay_on_demand = Kind::RelayOnDemand,
    relay_over_store = Kind::RelayOverStore,
    relay_over_relay = Kind::RelayOverRelay,
}

/// Prints the logs of all servers if the test fails. Shared servers are not dropped with it.
struct LogsOnPanic<'a>(&'a Target);

impl Drop for LogsOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.print_logs();
        }
    }
}
