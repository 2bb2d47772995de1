// The aggregator's brain: owns the state store, the workers, every job's engine, and the books of clients and updates. Executes the
// engine's actions; the daemon forwards RPCs to it (api.h).
//
//   RPC threads ──(mutex, short)──> engines ──> folds: worker pool        messages, watches, rows: loop thread, in order
//   worker pool callbacks ──> event queue ──> loop thread ──> engines     commits, journals: commit thread, one at a time
//
// What a client is told is true when it is told: COMMITTED is sent after the synced batch, in the order in which things happened
// (one outbound queue, drained by the loop thread without any lock held).
// Errors: as the interface comments of aggregator/ingress/backend.h say.
// Threads: public methods are safe from any thread. No lock is held across store I/O, a message or a callback.
// Source: reliability.md §1, §2, §5; design.md §3.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "aggregator/coordinator/api.h"
#include "aggregator/coordinator/capacity_book.h"
#include "aggregator/coordinator/client_book.h"
#include "aggregator/coordinator/housekeeping.h"
#include "aggregator/coordinator/job.h"
#include "aggregator/coordinator/worker_pool.h"
#include "aggregator/core/kernels.h"
#include "aggregator/core/round.h"
#include "aggregator/core/aggregate.h"
#include "aggregator/core/strategy.h"
#include "aggregator/state/state_store.h"
#include "common/byte_source.h"
#include "common/clock.h"
#include "tributary/v1/admin.pb.h"
#include "tributary/v1/federation.pb.h"

namespace tributary::aggregator {

inline constexpr int kMissedHeartbeats = 3;  // after which a client, or a node, is gone

struct CoordinatorOptions {
  StateStore::Options store;
  RetentionOptions retention;
  uint64_t record_bytes = uint64_t{4} << 30;  // that the recorded updates of one job may take in the store
  WorkerPool::Options workers;
  size_t pool_bytes = size_t{512} << 20;       // slabs and object pools of all jobs together
  absl::Duration heartbeat = absl::Seconds(5);  // kMissedHeartbeats of them
  absl::Duration journal_every = absl::Seconds(2);
  absl::Duration evaluation_wait = absl::Seconds(60);  // how long a finished job waits for one more evaluation
  absl::Duration refused_grace = absl::Seconds(2);     // for another update of a task whose update was refused
  absl::Duration poll = absl::Milliseconds(250);       // longest sleep of the loop; matters under a fake clock only
  size_t max_clients = 100'000;
  const StrategyEntry* (*find_strategy)(std::string_view name) = FindStrategy;  // tests bring traits that no strategy has yet
  CapacityBook capacities;                             // empty: no capacity is known, nothing is flagged
  std::string software = "tributary-aggregator";
  std::string transport_reason = "configured";  // why workers.transport; for people
  double node_capacity = 20;                    // MC of this node in updates (tributary nodes calibrate): placement
  std::vector<std::string> relay_nodes = {};    // that may attach below this one
  std::string upstream = {};                    // where the node above this one is, for people; empty: this is the top
};

class Coordinator {
 public:
  // Opens the store, starts the workers, takes up every job that is not over. `clock` must outlive the coordinator.
  static absl::StatusOr<std::unique_ptr<Coordinator>> Start(CoordinatorOptions options, const Clock* clock);
  ~Coordinator();

  // Tells attached clients that this server goes away and waits for commits under way, at most `timeout`. Nothing is committed
  // after it returned. Uploads and attaches are refused from the call on.
  void Drain(absl::Duration timeout) ABSL_LOCKS_EXCLUDED(mutex_);
  // Where gRPC is served, and Prometheus metrics if anywhere: for people.
  void SetAddress(const std::string& address, const std::string& metrics = "") ABSL_LOCKS_EXCLUDED(mutex_);
  // Called (loop thread, no lock of the coordinator held) with the id of a job that has ended, so that ingress drops its partial
  // uploads. Once a call with another function has returned, the former one is not called any more.
  void SetJobEnded(std::function<void(const std::string& job)> ended) ABSL_LOCKS_EXCLUDED(ended_mutex_);

  // ---- clients ----
  absl::Status Authenticate(const std::string& client, const std::string& secret);
  absl::StatusOr<uint64_t> Attach(const std::string& client, const v1::Hello& hello, std::shared_ptr<ClientSink> sink) ABSL_LOCKS_EXCLUDED(mutex_);
  void OnMessage(uint64_t session, const v1::ClientMessage& message) ABSL_LOCKS_EXCLUDED(mutex_);
  void Detach(uint64_t session) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<SharedBytes> Model(const std::string& client, const std::string& job, uint64_t version) ABSL_LOCKS_EXCLUDED(mutex_);
  // What goes down with a version besides the model (Strategy::version_vectors), one after the other, of the model's type; or the one that
  // goes down in the model's place, in the model's flat form (Strategy::in_place_of_model).
  absl::StatusOr<SharedBytes> Vectors(const std::string& client, const std::string& job, uint64_t version) ABSL_LOCKS_EXCLUDED(mutex_);
  // What makes `version` of version `after` (FetchModelRequest.fitness_after).
  absl::StatusOr<SharedBytes> Fitness(const std::string& client, const std::string& job, uint64_t after, uint64_t version) ABSL_LOCKS_EXCLUDED(mutex_);
  // The client's row of a strategy that mirrors states (Strategy::mirrored_state).
  absl::StatusOr<SharedBytes> ClientRow(const std::string& client, const std::string& job) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<SharedBytes> Artifact(const std::string& client, const std::string& job) ABSL_LOCKS_EXCLUDED(mutex_);
  void CountDownload(const std::string& job, uint64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<UpdateAdmission> AdmitUpload(const UpdateHeader& header, absl::Duration* retry) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status AcceptUpdate(const UpdateHeader& header, WritableObject object, const ScanResult& scan) ABSL_LOCKS_EXCLUDED(mutex_);
  void RejectUpdate(const UpdateHeader& header, const std::string& reason_code, const std::string& message) ABSL_LOCKS_EXCLUDED(mutex_);
  v1::UpdateStatus Query(const std::string& client, const v1::UpdateKey& key) ABSL_LOCKS_EXCLUDED(mutex_);

  // ---- nodes below this one (relay_top.cc) ----
  // PERMISSION_DENIED for a node that relay_nodes does not name, FAILED_PRECONDITION for one that a later start of it has fenced.
  absl::StatusOr<uint64_t> AttachNode(const std::string& name, const v1::NodeHello& hello, std::shared_ptr<NodeSink> sink) ABSL_LOCKS_EXCLUDED(mutex_);
  void OnNodeReport(uint64_t session, const v1::NodeReport& report) ABSL_LOCKS_EXCLUDED(mutex_);
  void DetachNode(uint64_t session) ABSL_LOCKS_EXCLUDED(mutex_);
  PartialAdmission BeginPartial(const std::string& name, const CheckedPartial& partial) ABSL_LOCKS_EXCLUDED(mutex_);
  // All bytes are in, their digest and range are good. Anything but TAKEN has changed nothing.
  v1::PartialAnswer FinishPartial(const std::string& name, const CheckedPartial& partial, std::span<const std::byte> sums) ABSL_LOCKS_EXCLUDED(mutex_);
  // Its bytes are wrong; counted by name.
  void RefusePartial(const std::string& name, const CheckedPartial& partial, const std::string& reason) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<v1::RelayVersion> RelayGetVersion(const std::string& name, const std::string& job, uint64_t version);

  // ---- the node above this one (relay_node.cc) ----
  // `upstream` must outlive the coordinator. Called once, before anything comes from there.
  void SetUpstream(Upstream* upstream) ABSL_LOCKS_EXCLUDED(mutex_);
  v1::NodeHello HelloToTop() ABSL_LOCKS_EXCLUDED(mutex_);
  void OnTop(const v1::TopMessage& message) ABSL_LOCKS_EXCLUDED(mutex_);

  // ---- people ----
  absl::StatusOr<v1::SubmitJobResponse> SubmitJob(const v1::SubmitHeader& header, std::unique_ptr<ByteSource> tensors, std::string artifact)
      ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<v1::Job> ListJobs() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<v1::Job> GetJob(const std::string& job) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<v1::Job> CancelJob(const std::string& job, const std::string& reason) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<v1::Job> ResumeJob(const std::string& job) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<std::shared_ptr<void>> Watch(const std::string& job, std::function<void()> changed) ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<v1::Client> ListClients(bool connected_only) ABSL_LOCKS_EXCLUDED(mutex_);
  v1::Node GetNode() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<std::vector<v1::VersionInfo>> ListVersions(const std::string& job) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<v1::VersionInfo> GetVersion(const v1::GetVersionRequest& request) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<std::string> ExportVersion(const v1::GetVersionRequest& request) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Outbound {
    std::shared_ptr<ClientSink> sink;
    v1::ServerMessage message;
    absl::Status close;       // not OK: end the stream instead
  };
  struct WorkerEvent {
    enum Kind { kFolded, kRefused, kLost } kind = kFolded;
    uint32_t job = 0;
    UpdateId update;
    std::string reason;
  };
  struct CommitWork {
    JobPtr job;
    std::shared_ptr<JobRuntime> runtime;
    bool journal = false;     // write the partial instead of committing
    Commit commit;
    v1::PartialRow partial;
    std::vector<std::string> lost;  // contributors that began anew although they had a client state
    std::vector<ObjectKey> kept;  // journal: the contributors' updates in their order, where they are kept whole
    size_t update_bytes = 0;      // of each of these
  };
  struct StoredEvent { std::string job; v1::EventRow row; };
  enum class RelayTask { kNone, kJoin, kAdopt, kPush };

  Coordinator(CoordinatorOptions options, const Clock* clock, std::unique_ptr<StateStore> store);

  // coordinator.cc: life, loop
  absl::Status Restore() ABSL_LOCKS_EXCLUDED(mutex_);
  void StoreRows(std::vector<JobPtr> jobs) ABSL_LOCKS_EXCLUDED(mutex_);
  void StoreClients(const std::vector<v1::ClientRow>& rows);
  void CloseRuntimes() ABSL_LOCKS_EXCLUDED(mutex_);
  void RunClientTimers(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status AwaitStored(const JobPtr& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Loop(const std::stop_token& stop) ABSL_LOCKS_EXCLUDED(mutex_);
  void RunTimers(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void HandleWorkerEvent(const WorkerEvent& event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Time NextWake() const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  bool LoopHasWork() const ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  // jobs.cc: opening, ending, rows
  // Reads the job's state from the store and starts its engine. The caller has set job->opening and the budget.
  absl::Status OpenJob(const JobPtr& job, std::shared_ptr<JobRuntime> runtime, size_t pool_bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status LoadJob(const JobPtr& job) ABSL_LOCKS_EXCLUDED(mutex_);   // metrics and timings, for people
  absl::StatusOr<std::vector<RoundContributor>> RestorePartial(Job& job, JobRuntime& runtime, const ModelRef& current, std::vector<UpdateEntry>* entries);
  void OpenQueuedJobs() ABSL_LOCKS_EXCLUDED(mutex_);
  PlannerLimits Limits() const;
  // The workers' next round, of which `done` updates are in the sums already or will be restored.
  absl::Status BeginRound(Job& job, JobRuntime& runtime, uint64_t number, uint64_t done);
  // The rest of the open round, once a planning period; while its sums are read there is nothing to plan.
  static absl::Time ReplanAt(const Job& job);
  void ReplanRound(Job& job, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Whether updates may wait with the workers for others to come, for longer than anybody should wait for them.
  static bool MayRest(const JobRuntime& runtime);
  // Once workers need not wait any more: the deadline has passed, or the server goes away.
  void HurryIfDue(Job& job, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Finalize(Job& job, v1::JobState state, const std::string& reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void MarkChanged(Job& job, bool persist) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Record(const Job& job, const std::string& kind, const std::string& client, uint64_t task, const std::string& text) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  JobPtr FindJob(const std::string& id) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);                    // exact; null if none
  absl::StatusOr<JobPtr> ResolveJob(const std::string& text) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);  // unique prefix of id or name
  v1::NodeJob DescribeOnNode(const Job& job) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);  // open
  v1::Job Describe(const Job& job) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  std::string WaitingFor(const Job& job) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  size_t UsedBudget() const ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  // engine.cc: events in, actions out
  void Post(const JobPtr& job, RoundEvent event, bool first = false) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Execute(const JobPtr& job, RoundAction action) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Do(const JobPtr& job, const IssueTask& action) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Do(const JobPtr& job, const CancelTask& action) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Do(const JobPtr& job, const Fold& action) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Do(const JobPtr& job, const Refuse& action) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Do(const JobPtr& job, const Commit& action) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Do(const JobPtr& job, const Evaluate& action) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Do(const JobPtr& job, const Finish& action) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Do(const JobPtr& job, const WakeAt& action) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SendFold(const JobPtr& job, const UpdateId& update, const ObjectKey& key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ReleaseWhole(const Job& job, UpdateEntry& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // On the commit thread: the sums of the workers and nodes, or the updates kept whole, into the next model. `clip`: of the version that the
  // updates start from; becomes that of the next one.
  absl::Status MakeModel(const JobPtr& job, JobRuntime& runtime, const Commit& commit, const WorkerPool::Sums& sums,
                         std::span<const WholeUpdate> whole, const ModelBuffer& previous, ModelBuffer& next, double* clip,
                         std::map<std::string, double>* measured) ABSL_LOCKS_EXCLUDED(mutex_);
  // Recorded updates of a job that is over which are in no version.
  absl::Status DropUncounted(const std::string& job) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status CheckRecordSize(const JobSpec& spec, const JobRuntime& runtime) const;
  void LoseAggregate(const JobPtr& job, const std::string& reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // clients.cc: sessions, tasks, evaluations
  void SendTo(ClientRecord& client, v1::ServerMessage message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SendTask(ClientRecord& client, const Job& job, const IssuedTask& task) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SendJobInfo(ClientRecord& client, const Job& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SendStatus(const Job& job, const UpdateKeyRef& key, v1::UpdateState state, uint64_t version, const std::string& reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The client has no task of any job: offers it to the open jobs, oldest first, until one gives it a task.
  void OfferIdle(ClientRecord& client, const std::map<std::string, std::vector<UpdateKeyRef>>& offers = {}) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Forgets the task that `client` has of `job` (0: any); true if there was one.
  bool ForgetTask(Job& job, const std::string& client, uint64_t task) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void GiveUpTask(const JobPtr& job, const std::string& client, uint64_t task, const std::string& reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool HasTask(const ClientRecord& client) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  void Withdraw(ClientRecord& client, bool with_tasks) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnHeartbeat(ClientRecord& client, const v1::Heartbeat& heartbeat) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnDeclined(ClientRecord& client, const v1::TaskDeclined& declined) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnEvaluation(ClientRecord& client, const v1::EvaluationReport& report) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AskEvaluation(ClientRecord& client, const Job& job, uint64_t version) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void NextEvaluation(ClientRecord& client) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Evaluates(const ClientRecord& client, const Job& job) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // Ids of attached evaluators that still owe `job` a report.
  std::vector<std::string> OwingEvaluators(const Job& job) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  void MaybeEndEvaluation(Job& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // uploads.cc
  absl::Status CheckHeader(const UpdateHeader& header, const Job& job) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // Whether `key` may upload now. Takes up a task of the open version that a former run of this server issued.
  absl::Status CheckOrAdopt(const JobPtr& job, const UpdateKeyRef& key, uint64_t version) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool OfOpenVersion(const Job& job, uint64_t task) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // The version whose client state a task of the open version starts from; 0: none. The job is open.
  uint64_t ExpectedState(const Job& job, const std::string& client) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // The contributors' rows as the commit leaves them.
  absl::Status NextRows(const JobPtr& job, const JobRuntime& runtime, std::span<const WholeUpdate> whole, std::vector<std::vector<std::byte>>* rows)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // The clients' rows as the open version finds them.
  RowReader RowsOf(const JobPtr& job) ABSL_LOCKS_EXCLUDED(mutex_);
  void CountRefused(Job& job, const std::string& code, const UpdateKeyRef& key, const std::string& text) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Settle(Job& job, UpdateEntry& entry, v1::UpdateState state, const std::string& reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  v1::UpdateStatus FromMemory(const Job& job, const UpdateKeyRef& key) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);  // UNKNOWN: no trace

  // commits.cc: the commit thread
  void CommitLoop(const std::stop_token& stop) ABSL_LOCKS_EXCLUDED(mutex_);
  void RunCommit(CommitWork& work) ABSL_LOCKS_EXCLUDED(mutex_);
  // What the store may forget of a job. True: there is more.
  bool TidyJob(const JobPtr& job) ABSL_LOCKS_EXCLUDED(mutex_);
  // After a commit met trouble that may pass. False: the coordinator stops.
  bool AwaitCommitRetry(const JobPtr& job, uint64_t version, const absl::Status& trouble) ABSL_LOCKS_EXCLUDED(mutex_);
  void RunJournal(CommitWork& work) ABSL_LOCKS_EXCLUDED(mutex_);
  void MaybeJournal(const JobPtr& job, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndJournal(const JobPtr& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What was held back for a journal is folded after all.
  void EndQuiescing(const JobPtr& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Publish(const JobPtr& job, const Commit& commit, std::shared_ptr<ModelBuffer> model, v1::VersionRow row) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // relay_top.cc: this node as the top
  NodeRecord* NodeOf(uint64_t session) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RunNodeTimers(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool NodesMayServe(const Job& job) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  int64_t ExpectedFromNodes(const Job& job) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // Shares out what nobody brings yet of the open version; the engine learns what to expect.
  void ShareJob(const JobPtr& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void MaybeGatherAgain(const JobPtr& job, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  int64_t AskedOf(const std::string& name) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ShareOpenJobs() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // True if a node is asked for more than before.
  bool PlaceShares(Job& job, int64_t missing) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OpenShares(const JobPtr& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void LoseShares(const JobPtr& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndShares(const Job& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void GiveUpShare(const JobPtr& job, const std::string& name, const std::string& reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SendRound(const Job& job, NodeRecord& node, uint64_t goal, bool again) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckAgainstStore(const CheckedPartial& partial, v1::PartialAnswer* answer) const;
  v1::PartialAnswer JudgePartial(const std::string& name, const CheckedPartial& partial, const JobPtr& job, bool* bad) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  void CountBadPartial(const std::string& name, const JobPtr& job, const std::string& reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // relay_node.cc: this node below another; the relay thread
  void RelayLoop(const std::stop_token& stop) ABSL_LOCKS_EXCLUDED(mutex_);
  RelayTask NextRelayTask(const Job& job, absl::Time now, absl::Time* wake) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  absl::Status JoinJob(const std::string& id) ABSL_LOCKS_EXCLUDED(mutex_);
  // Until the workers have nothing of the job in hand; from then on nothing goes to them.
  void AwaitFolds(const JobPtr& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status AdoptVersion(const JobPtr& job) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status PushPartial(const JobPtr& job) ABSL_LOCKS_EXCLUDED(mutex_);
  void OnRelayRound(const v1::RelayRound& round) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SetGoal(const JobPtr& job, bool hurry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void LosePartial(const JobPtr& job, const std::string& reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void DropOverlap(const JobPtr& job, const v1::PartialAnswer& answer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void MaybeSendShort(const JobPtr& job, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void MaybeEndRelayed(const JobPtr& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ReportClients() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  int64_t TrainingClients() const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  static JobSpec RelayedSpec(const Job& job);
  // The node above has said what is wanted, and nothing is to be caught up with first.
  static bool MayOpenRelayed(const Job& job);
  static bool BehindTop(const Job& job);

  const CoordinatorOptions options_;
  const Clock* const clock_;
  const std::unique_ptr<StateStore> store_;
  const int64_t started_us_;
  ClientBook book_;                 // identities; own lock
  Housekeeping housekeeping_;       // commit thread only
  std::unique_ptr<WorkerPool> workers_;

  mutable absl::Mutex mutex_;
  absl::CondVar loop_wake_;
  absl::CondVar commit_wake_;
  absl::CondVar changed_;           // a commit ended, a row was stored
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  std::string address_ ABSL_GUARDED_BY(mutex_);
  std::string metrics_address_ ABSL_GUARDED_BY(mutex_);
  std::vector<JobPtr> jobs_ ABSL_GUARDED_BY(mutex_);        // by submission
  std::map<uint32_t, std::weak_ptr<Job>> by_number_ ABSL_GUARDED_BY(mutex_);
  uint32_t next_number_ ABSL_GUARDED_BY(mutex_) = 1;
  std::map<std::string, ClientRecord> clients_ ABSL_GUARDED_BY(mutex_);
  std::map<uint64_t, std::string> sessions_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_session_ ABSL_GUARDED_BY(mutex_) = 1;
  uint64_t next_evaluation_ ABSL_GUARDED_BY(mutex_) = 1;
  std::deque<std::pair<JobPtr, RoundEvent>> engine_events_ ABSL_GUARDED_BY(mutex_);
  bool applying_ ABSL_GUARDED_BY(mutex_) = false;

  // Work for the loop thread. Bounds: outbound by tasks and updates in the books; worker events by slots of the pools; stored
  // events kMaxStoredEvents, beyond which they are counted and dropped; the rest by jobs and clients.
  std::deque<Outbound> outbound_ ABSL_GUARDED_BY(mutex_);
  std::deque<WorkerEvent> worker_events_ ABSL_GUARDED_BY(mutex_);
  std::deque<StoredEvent> stored_events_ ABSL_GUARDED_BY(mutex_);
  uint64_t events_dropped_ ABSL_GUARDED_BY(mutex_) = 0;
  std::deque<std::pair<std::string, v1::Metric>> metrics_out_ ABSL_GUARDED_BY(mutex_);
  std::set<std::shared_ptr<WatchList>> notify_ ABSL_GUARDED_BY(mutex_);
  std::set<JobPtr> dirty_ ABSL_GUARDED_BY(mutex_);          // rows to store
  std::set<std::string> dirty_clients_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::pair<JobPtr, std::shared_ptr<JobRuntime>>> closing_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::shared_ptr<JobRuntime>> retired_ ABSL_GUARDED_BY(mutex_);  // pools that ingress may still write into
  std::deque<CommitWork> commits_ ABSL_GUARDED_BY(mutex_);
  std::set<JobPtr> to_tidy_ ABSL_GUARDED_BY(mutex_);
  absl::Time next_client_scan_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  absl::Time store_again_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();  // after a row could not be stored
  bool open_jobs_ ABSL_GUARDED_BY(mutex_) = false;          // memory became free: queued jobs may open

  std::map<std::string, NodeRecord> nodes_ ABSL_GUARDED_BY(mutex_);   // below this one
  Upstream* upstream_ ABSL_GUARDED_BY(mutex_) = nullptr;              // above it
  uint64_t fence_ ABSL_GUARDED_BY(mutex_) = 0;                        // of the node above
  std::map<std::string, v1::JobInfo> announced_ ABSL_GUARDED_BY(mutex_);      // of jobs that are not here yet
  std::map<std::string, v1::RelayRound> announced_rounds_ ABSL_GUARDED_BY(mutex_);
  absl::Time join_not_before_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  int64_t clients_told_ ABSL_GUARDED_BY(mutex_) = -1;
  absl::Time next_report_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
  absl::Duration report_every_ ABSL_GUARDED_BY(mutex_) = absl::Seconds(5);
  absl::CondVar relay_wake_;

  absl::Mutex ended_mutex_;         // held during the call
  std::function<void(const std::string&)> ended_ ABSL_GUARDED_BY(ended_mutex_);

  std::jthread loop_;
  std::jthread committer_;
  std::jthread relayer_;            // where there is a node above
};

}  // namespace tributary::aggregator
