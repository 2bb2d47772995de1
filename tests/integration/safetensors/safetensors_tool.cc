// What the Python test drives:
//   safetensors_tool list FILE        one line per tensor: name, type, shape, SHA-256 of its bytes; then the metadata
//   safetensors_tool copy FILE OUT    FILE through ToModel and WriteSafetensors
// Exit 0, or 1 with the error on stderr.
#include <cstdio>
#include <string>

#include "common/digest.h"
#include "common/safetensors.h"

namespace tributary {
namespace {

absl::Status List(const std::string& path) {
  TRIB_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Read(path));
  for (const SafetensorsEntry& entry : file.view().entries) {
    std::string shape;
    for (const int64_t extent : entry.shape) shape += (shape.empty() ? "" : "x") + std::to_string(extent);
    std::printf("tensor\t%s\t%s\t%s\t%s\n", entry.name.c_str(), entry.dtype.c_str(), shape.c_str(), Sha256Hex(entry.bytes).c_str());
  }
  for (const auto& note : file.view().metadata) std::printf("metadata\t%s\t%s\n", note.first.c_str(), note.second.c_str());
  return absl::OkStatus();
}

absl::Status Copy(const std::string& from, const std::string& to) {
  TRIB_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Read(from));
  TRIB_ASSIGN_OR_RETURN(const FlatModel model, ToModel(file.view()));
  return WriteSafetensors(to, model.layout, model.bytes, {{"written_by", "tributary"}});
}

}  // namespace
}  // namespace tributary

int main(int argc, char** argv) {
  const std::string command = argc > 1 ? argv[1] : "";
  absl::Status status = tributary::InvalidArgument("usage: safetensors_tool list FILE | copy FILE OUT");
  if (command == "list" && argc == 3) status = tributary::List(argv[2]);
  if (command == "copy" && argc == 4) status = tributary::Copy(argv[2], argv[3]);
  if (status.ok()) return 0;
  std::fprintf(stderr, "%s\n", tributary::MessageOf(status).c_str());
  return 1;
}
