// What a cluster's nodes, devices and links can do: `degu bench comm --out CLUSTER.yaml` measures
// it, or a person writes it from data sheets. `degu plan --train` predicts layouts with it.
#pragma once

#include <cstdint>
#include <string>

#include "config/fields.h"

namespace degu {

// A message of n bytes takes latency + n / bandwidth.
struct LinkSpec {
  double latency = 0;    // seconds
  double bandwidth = 0;  // bytes per second, each rank sending and receiving at once

  double seconds(double bytes) const { return latency + bytes / bandwidth; }
  void fields(Fields& f) {
    f("latency", latency, "seconds of a message without content");
    f("bandwidth", bandwidth, "bytes per second that each rank sends while it receives as many");
  }
};

struct DeviceSpec {
  std::string name;
  double memory = 0;
  double fp32_flops = 0;
  double bf16_flops = 0;
  double memory_bandwidth = 0;

  void fields(Fields& f) {
    f("name", name, "for people");
    f("memory", memory, "bytes that one rank may use; 0: not known");
    f("fp32_flops", fp32_flops, "fp32 operations per second of one rank");
    f("bf16_flops", bf16_flops, "bf16 operations per second of one rank");
    f("memory_bandwidth", memory_bandwidth, "bytes per second that one rank reads from its memory");
  }
};

struct ClusterSpec {
  std::string source;  // "measured 2026-11-22" or where the figures are from
  int nodes = 1;
  int ranks_per_node = 1;
  DeviceSpec device;
  LinkSpec within_node;
  LinkSpec between_nodes;

  int ranks() const { return nodes * ranks_per_node; }
  void fields(Fields& f) {
    f("source", source, "where the figures are from");
    f("nodes", nodes, "machines");
    f("ranks_per_node", ranks_per_node, "ranks (GPUs) in each");
    f("device", device, "what one rank computes with");
    f("within_node", within_node, "between ranks of one node");
    f("between_nodes", between_nodes, "between ranks of different nodes; with one node not used");
  }
  // ConfigError when a rate that the layout needs is not above 0.
  void check() const;
};

// IoError when the file cannot be read; ConfigError (with file:line) when it is not such a file.
ClusterSpec load_cluster(const std::string& path);

}  // namespace degu
