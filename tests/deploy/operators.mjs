// Validates objects of operators against models made from the operators' own definitions: a JSON array on stdin,
// "kind: ok" or "kind: what is wrong" per object on stdout.
import { readFileSync } from "fs";
import { ScaledObject } from "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject";
import { PodMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PodMonitor";
import { PrometheusRule } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PrometheusRule";

const models = { ScaledObject, PodMonitor, PrometheusRule };
for (const object of JSON.parse(readFileSync(0, "utf8"))) {
  try {
    new models[object.kind](object).validate();
    console.log(`${object.kind}: ok`);
  } catch (error) {
    console.log(`${object.kind}: ${error.message}`);
  }
}
