{{/* How a pod gets the model's files. Each but modelPath takes root and tokenizerOnly. */}}

{{- define "pagewire.modelPath" -}}
{{- $model := .Values.model -}}
{{- if eq $model.source "hub" -}}
/models/model
{{- else if eq $model.source "pvc" -}}
{{- printf "/models/%s" $model.pvc.path | trimSuffix "/" -}}
{{- else -}}
{{- printf "/models/%s" $model.image.path | trimSuffix "/" -}}
{{- end -}}
{{- end -}}

{{- define "pagewire.modelMount" -}}
- name: models
  mountPath: /models
  readOnly: true
{{- end -}}

{{- define "pagewire.modelVolume" -}}
{{- $model := .root.Values.model -}}
{{- if eq $model.source "pvc" }}
- name: models
  persistentVolumeClaim:
    claimName: {{ required "model.pvc.claimName: say which claim holds the model" $model.pvc.claimName }}
    readOnly: true
{{- else if eq $model.source "image" }}
- name: models
  image:
    reference: {{ required "model.image.reference: say which image holds the model" $model.image.reference }}
    pullPolicy: {{ $model.image.pullPolicy }}
{{- else if or .tokenizerOnly (not $model.hub.cacheOnClaim) }}
- name: models
  emptyDir:
    sizeLimit: {{ $model.hub.cacheSize }}
{{- end }}
{{- end -}}

{{- define "pagewire.modelInit" -}}
{{- $model := .root.Values.model -}}
{{- if eq $model.source "hub" }}
- name: fetch-model
  image: {{ include "pagewire.image" (dict "root" .root "image" .root.Values.gateway.image) }}
  imagePullPolicy: {{ .root.Values.gateway.image.pullPolicy }}
  command: [python, -m, scheduler_service.supervisor.fetch]
  args:
    - --repo={{ required "model.hub.repo: say which model to serve, such as Qwen/Qwen3-8B" $model.hub.repo }}
    - --revision={{ $model.hub.revision }}
    {{- with $model.hub.file }}
    - --file={{ . }}
    {{- end }}
    {{- if .tokenizerOnly }}
    - --tokenizer-only
    {{- end }}
    - --link=/models/model
  env:
    - name: HF_HOME
      value: /models/hub
    {{- with $model.hub.tokenSecretName }}
    - name: HF_TOKEN
      valueFrom:
        secretKeyRef:
          name: {{ . }}
          key: {{ $model.hub.tokenSecretKey }}
    {{- end }}
  {{- include "pagewire.containerDefaults" .root | nindent 2 }}
  resources:
    requests:
      cpu: 500m
      memory: 512Mi
    limits:
      memory: 4Gi
  volumeMounts:
    - name: models
      mountPath: /models
    - name: tmp
      mountPath: /tmp
{{- end }}
{{- end -}}
