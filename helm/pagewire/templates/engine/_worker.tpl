{{/* The ranks of one host. */}}
{{- define "pagewire.workerContainer" -}}
{{- $worker := .Values.worker -}}
{{- $engine := .Values.engine -}}
- name: worker
  image: {{ include "pagewire.image" (dict "root" . "image" $worker.image) }}
  imagePullPolicy: {{ $worker.image.pullPolicy }}
  command: [python, -m, scheduler_service.supervisor.container]
  args:
    - --health-listen=0.0.0.0:8087
    - --ranks={{ include "pagewire.ranksPerHost" . }}
    {{- if $engine.multiHost.enabled }}
    - --host-index=$(LWS_WORKER_INDEX)
    {{- end }}
    - --step-timeout={{ $worker.stepTimeoutSeconds }}
    - --grace-s={{ add $engine.drainSeconds 15 }}
    - --log-level={{ .Values.logLevel }}
    - --log-format=json
    - --
    - python
    - -m
    - gpu_worker
    {{- include "pagewire.workerArgs" . | nindent 4 }}
  {{- with $worker.extraEnv }}
  env:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  ports:
    - name: worker-health
      containerPort: 8087
  startupProbe:
    grpc:
      port: 8087
    periodSeconds: 5
    timeoutSeconds: 2
    failureThreshold: {{ max 1 (div $worker.startupSeconds 5) }}
  readinessProbe:
    grpc:
      port: 8087
    periodSeconds: 5
    timeoutSeconds: 2
  livenessProbe:
    grpc:
      port: 8087
      service: liveness
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 6
  {{- if $engine.preStopSeconds }}
  lifecycle:
    preStop:
      sleep:
        seconds: {{ $engine.preStopSeconds }}
  {{- end }}
  {{- include "pagewire.containerDefaults" . | nindent 2 }}
  resources:
    {{- include "pagewire.workerResources" . | nindent 4 }}
  volumeMounts:
    {{- include "pagewire.modelMount" . | nindent 4 }}
    - name: tmp
      mountPath: /tmp
    - name: run
      mountPath: /run/pagewire
    - name: cache
      mountPath: /var/cache/pagewire
    - name: shm
      mountPath: /dev/shm
    {{- if $engine.multiHost.enabled }}
    - name: curve
      mountPath: /etc/pagewire/curve
      readOnly: true
    {{- end }}
{{- end -}}

{{- define "pagewire.ranksPerHost" -}}
{{- if .Values.engine.multiHost.enabled -}}
{{- div .Values.worker.tensorParallelSize .Values.engine.multiHost.hosts -}}
{{- else -}}
{{- .Values.worker.tensorParallelSize -}}
{{- end -}}
{{- end -}}

{{- define "pagewire.workerArgs" -}}
{{- $worker := .Values.worker -}}
- --model={{ include "pagewire.modelPath" . }}
{{- if .Values.engine.multiHost.enabled }}
- --scheduler-address=tcp://$(LWS_LEADER_ADDRESS):5556
- --curve-keys=/etc/pagewire/curve
- --distributed-address=$(LWS_LEADER_ADDRESS):29500
{{- else }}
- --scheduler-address=ipc:///run/pagewire/workers.sock
{{- if gt (int $worker.tensorParallelSize) 1 }}
- --distributed-address=file:/run/pagewire/ranks
{{- end }}
{{- end }}
- --tensor-parallel-size={{ $worker.tensorParallelSize }}
- --device={{ $worker.device }}
- --gpu-memory-utilization={{ $worker.gpuMemoryUtilization }}
{{- with $worker.cpuMemoryGib }}
- --cpu-memory-gib={{ . }}
{{- end }}
- --load-format={{ $worker.loadFormat }}
- --drain-timeout={{ add .Values.engine.drainSeconds 10 }}
{{- include "pagewire.logArgs" . }}
{{- with $worker.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "pagewire.workerResources" -}}
{{- $resources := deepCopy .Values.worker.resources -}}
{{- if eq .Values.worker.device "cuda" -}}
{{- $gpus := dict .Values.worker.gpuResource (include "pagewire.ranksPerHost" . | int) -}}
{{- $_ := set $resources "limits" (merge $gpus (default dict $resources.limits)) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* Gives the cache what the image has compiled, because a volume hides it there. */}}
{{- define "pagewire.tritonInit" -}}
{{- if eq .Values.worker.device "cuda" }}
- name: copy-kernels
  image: {{ include "pagewire.image" (dict "root" . "image" .Values.worker.image) }}
  imagePullPolicy: {{ .Values.worker.image.pullPolicy }}
  command: [cp, --recursive, /opt/pagewire/triton, /var/cache/pagewire/]
  {{- include "pagewire.containerDefaults" . | nindent 2 }}
  resources:
    requests:
      cpu: 100m
      memory: 64Mi
    limits:
      memory: 256Mi
  volumeMounts:
    - name: cache
      mountPath: /var/cache/pagewire
{{- end }}
{{- end -}}
