#include "client/rpc/privatise.h"

#include <cstring>
#include <optional>
#include <span>
#include <utility>

#include "client/core/private_update.h"
#include "common/log.h"
#include "common/random_words.h"

namespace tributary::client {

namespace {

absl::StatusOr<UpdateRequest> RequestOf(const Job& job, const std::string& client, double clip, const OutboxHeader& header) {
  UpdateRequest request{.spec = &job.spec, .encoding = job.encoding, .client = client, .version = header.version, .clip = clip, .noise_key = {}, .feedback = {}};
  if (NeedsNoiseKey(job.spec)) {
    TRIB_ASSIGN_OR_RETURN(request.noise_key, SecretKey());
  }
  return request;
}

}  // namespace

absl::Status PrivatiseOnDevice(const Job& job, const std::string& client, double clip, DeviceUpdate& update, const Outbox::PartWriter& writer, OutboxHeader* header) {
  TRIB_ASSIGN_OR_RETURN(const UpdateRequest request, RequestOf(job, client, clip, *header));
  const UpdatePlan plan = PlanUpdate(request);
  TRIB_ASSIGN_OR_RETURN(const double norm, update.Encode(plan, writer));
  AddPrivacyScalars(request, plan, norm, &header->scalars);
  return absl::OkStatus();
}

absl::StatusOr<LargeBytes> Privatise(const Job& job, const std::string& client, double clip, const StateFiles& state, LargeBytes flat, OutboxHeader* header) {
  TRIB_ASSIGN_OR_RETURN(UpdateRequest request, RequestOf(job, client, clip, *header));
  const bool keeps = KeepsFeedback(job.encoding);
  std::vector<float> feedback;
  const size_t bytes = job.encoding.trainable * sizeof(float);
  if (keeps) {
    const absl::StatusOr<std::optional<StateValue>> kept = state.Current(header->job, kErrorFeedback);
    if (!kept.ok() || (*kept && (*kept)->bytes.size() != bytes)) {
      // What earlier updates left out is lost then: a delay for the model, no error in it.
      TRIB_LOG(warn, "{}: error feedback begins anew: {}", client,
               kept.ok() ? fmt::format("expected {} bytes, got {}", bytes, (*kept)->bytes.size()) : MessageOf(kept.status()));
    } else if (*kept) {
      feedback.resize(job.encoding.trainable);
      std::memcpy(feedback.data(), (*kept)->bytes.data(), bytes);
    }
  }
  request.feedback = feedback;
  TRIB_ASSIGN_OR_RETURN(EncodedUpdate encoded, MakeUpdate(request, std::move(flat), &header->scalars));
  if (keeps) TRIB_RETURN_IF_ERROR(state.Stage(header->job, kErrorFeedback, header->update, std::as_bytes(std::span(encoded.residual))));
  return std::move(encoded.bytes);
}

}  // namespace tributary::client
