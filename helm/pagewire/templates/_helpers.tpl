{{/* Names and labels. Each takes the root context, or a dict of root and component. */}}

{{- define "pagewire.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "pagewire.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "pagewire.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "pagewire.curveSecretName" -}}
{{- default (printf "%s-curve" (include "pagewire.fullname" .)) .Values.curve.secretName -}}
{{- end -}}

{{- define "pagewire.tlsSecretName" -}}
{{- default (printf "%s-tls" (include "pagewire.fullname" .)) .Values.tls.secretName -}}
{{- end -}}

{{- define "pagewire.apiKeysSecretName" -}}
{{- default (printf "%s-api-keys" (include "pagewire.fullname" .)) .Values.apiKeys.secretName -}}
{{- end -}}

{{- define "pagewire.modelName" -}}
{{- if .Values.model.name -}}
{{- .Values.model.name -}}
{{- else -}}
{{- required "model.name: say what requests call the model, which only models from the Hub have a name for" .Values.model.hub.repo -}}
{{- end -}}
{{- end -}}

{{/* The gateways' service as it is called from anywhere in the cluster. */}}
{{- define "pagewire.gatewayHost" -}}
{{- printf "%s-gateway.%s.svc.%s" (include "pagewire.fullname" .) .Release.Namespace .Values.clusterDomain -}}
{{- end -}}

{{/* The service of the schedulers, and the address that stands for all of them. The dot saves questions for longer names. */}}
{{- define "pagewire.schedulerService" -}}
{{- include "pagewire.fullname" . }}-scheduler
{{- end -}}

{{- define "pagewire.schedulerAddress" -}}
{{- printf "dns+tcp://%s.%s.svc.%s.:5555" (include "pagewire.schedulerService" .) .Release.Namespace .Values.clusterDomain -}}
{{- end -}}

{{- define "pagewire.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (default .root.Chart.AppVersion .image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "pagewire.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{ include "pagewire.selectorLabels" . }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "pagewire.selectorLabels" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}
