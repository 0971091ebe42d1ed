{{/* A pod with a scheduler and the ranks of its host; of several hosts it is the first. */}}
{{- define "pagewire.enginePod" -}}
{{- include "pagewire.engineMetadata" (dict "root" . "component" "engine") }}
spec:
  {{- include "pagewire.engineSpec" (dict "root" . "component" "engine" "values" .Values.engine) | nindent 2 }}
  containers:
    {{- include "pagewire.schedulerContainer" . | nindent 4 }}
    {{- include "pagewire.workerContainer" . | nindent 4 }}
  volumes:
    {{- include "pagewire.engineVolumes" (dict "root" . "items" (include "pagewire.schedulerKeys" . | fromJsonArray)) | nindent 4 }}
{{- end -}}

{{/* A pod with the ranks of a further host. */}}
{{- define "pagewire.workerPod" -}}
{{- include "pagewire.engineMetadata" (dict "root" . "component" "engine-worker") }}
spec:
  {{- include "pagewire.engineSpec" (dict "root" . "component" "engine-worker" "values" .Values.engine) | nindent 2 }}
  containers:
    {{- include "pagewire.workerContainer" . | nindent 4 }}
  volumes:
    {{- include "pagewire.engineVolumes" (dict "root" . "items" (list "worker.secret" "worker.public" "scheduler.public")) | nindent 4 }}
{{- end -}}

{{/* Ranks of the scheduler's own host reach it without keys. */}}
{{- define "pagewire.schedulerKeys" -}}
{{- $keys := list "scheduler.secret" "scheduler.public" "gateway.public" -}}
{{- if .Values.engine.multiHost.enabled -}}
{{- $keys = concat $keys (list "worker.public" "worker.secret") -}}
{{- end -}}
{{- toJson $keys -}}
{{- end -}}

{{- define "pagewire.engineMetadata" -}}
metadata:
  labels:
    {{- include "pagewire.labels" . | nindent 4 }}
    {{- with .root.Values.engine.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .root.Values.engine.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- define "pagewire.engineSpec" -}}
{{- $engine := .values -}}
{{- include "pagewire.podDefaults" .root }}
{{ include "pagewire.placement" . | trim }}
{{- /* drainSeconds for the scheduler, and 5, 10, 15 more: its process 1, its workers, their process 1. */}}
terminationGracePeriodSeconds: {{ add $engine.preStopSeconds $engine.drainSeconds 30 }}
{{- $fetch := include "pagewire.modelInit" (dict "root" .root "tokenizerOnly" false) | trim }}
{{- $driver := include "pagewire.tritonInit" .root | trim }}
{{- if or $fetch $driver }}
initContainers:
  {{- with $fetch }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with $driver }}
  {{- . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "pagewire.engineVolumes" -}}
{{- with include "pagewire.modelVolume" (dict "root" .root "tokenizerOnly" false) | trim }}
{{- . }}
{{ end -}}
- name: tmp
  emptyDir: {}
- name: run
  emptyDir:
    medium: Memory
    sizeLimit: 16Mi
- name: cache
  emptyDir:
    sizeLimit: 8Gi
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ .root.Values.worker.shmSize }}
- name: curve
  secret:
    secretName: {{ include "pagewire.curveSecretName" .root }}
    defaultMode: 0440
    items:
      {{- range .items }}
      - key: {{ . }}
        path: {{ . }}
      {{- end }}
{{- end -}}
