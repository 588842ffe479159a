{{/* The prefix of every name: at most 40 characters, so that names after it stay below 63. (include "irlops.fullname" .) */}}
{{- define "irlops.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Selector labels of a component: name, instance and component only, for they are immutable, and without the instance
     two releases would select each other's pods. (include "irlops.selector" (dict "root" . "component" "gateway")) */}}
{{- define "irlops.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Labels of an object of a component. Arguments as above. */}}
{{- define "irlops.labels" -}}
{{ include "irlops.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: irlops
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels of a pod of a component: the selector's, the release's (NetworkPolicies go by it) and commonLabels. Arguments as above. */}}
{{- define "irlops.podLabels" -}}
{{ include "irlops.selector" . }}
app.kubernetes.io/part-of: irlops
irlops.dev/release: {{ .root.Release.Name }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* An image reference. (include "irlops.image" (dict "root" . "image" .Values.images.platform)) */}}
{{- define "irlops.image" -}}
{{- $registry := default .image.registry .root.Values.global.imageRegistry -}}
{{- $name := ternary .image.repository (printf "%s/%s" $registry .image.repository) (empty $registry) -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $name .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default .root.Chart.AppVersion .image.tag) -}}
{{- end -}}
{{- end -}}

{{/* imagePullSecrets of a pod, or nothing. (include "irlops.pullSecrets" .) */}}
{{- define "irlops.pullSecrets" -}}
{{- with .Values.global.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Security context of a pod under PodSecurity `restricted`. (include "irlops.podSecurity" .) */}}
{{- define "irlops.podSecurity" -}}
runAsNonRoot: true
{{- with .Values.podSecurity.runAsUser }}
runAsUser: {{ int64 . }}
{{- end }}
{{- with .Values.podSecurity.runAsGroup }}
runAsGroup: {{ int64 . }}
fsGroup: {{ int64 . }}
{{- end }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Security context of a container under PodSecurity `restricted`, with a read-only root. (include "irlops.containerSecurity" .) */}}
{{- define "irlops.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
{{- with .Values.podSecurity.runAsUser }}
runAsUser: {{ int64 . }}
{{- end }}
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* nodeSelector, tolerations, affinity of a component. (include "irlops.placement" .Values.gateway) */}}
{{- define "irlops.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Whether something optional is made: "true" or nothing. (include "irlops.wanted" (dict "root" . "when" "auto" "api" "monitoring.coreos.com/v1")) */}}
{{- define "irlops.wanted" -}}
{{- if or (eq .when "always") (and (eq .when "auto") (.root.Capabilities.APIVersions.Has .api)) -}}
true
{{- end -}}
{{- end -}}

{{/* Where MLflow is. (include "irlops.trackingUri" .) */}}
{{- define "irlops.trackingUri" -}}
{{- if .Values.mlflow.enabled -}}
{{- printf "http://%s-mlflow.%s.svc:5000" (include "irlops.fullname" .) .Release.Namespace -}}
{{- else -}}
{{- .Values.mlflow.trackingUri -}}
{{- end -}}
{{- end -}}

{{/* Secret with MLflow's username and password, or nothing when an external MLflow asks for none. (include "irlops.mlflowSecret" .) */}}
{{- define "irlops.mlflowSecret" -}}
{{- if .Values.mlflow.auth.existingSecret -}}
{{- .Values.mlflow.auth.existingSecret -}}
{{- else if .Values.mlflow.enabled -}}
{{- include "irlops.fullname" . }}-mlflow-auth
{{- end -}}
{{- end -}}

{{/* MLFLOW_TRACKING_USERNAME and _PASSWORD as environment, or nothing. (include "irlops.mlflowCredentials" .) */}}
{{- define "irlops.mlflowCredentials" -}}
{{- with include "irlops.mlflowSecret" . }}
- name: MLFLOW_TRACKING_USERNAME
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: username}
- name: MLFLOW_TRACKING_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: password}
{{- end }}
{{- end -}}

{{/* What the default critic runtime speaks: vllm or v2. (include "irlops.criticProtocol" .) */}}
{{- define "irlops.criticProtocol" -}}
{{- default (ternary "v2" "vllm" (eq .Values.runtimes.default "cpu")) .Values.pair.critic.protocol -}}
{{- end -}}

{{/* The pair section of the gateway's settings as the values describe it. (include "irlops.pair" .) */}}
{{- define "irlops.pair" -}}
{{- $service := printf "http://%s-%%s-predictor.%s.svc" (include "irlops.fullname" .) .Release.Namespace -}}
pair:
  policy:
    url: {{ default (printf $service "policy") .Values.pair.policy.url | quote }}
    model: {{ .Values.pair.policy.model | quote }}
  critic:
    url: {{ default (printf $service "critic") .Values.pair.critic.url | quote }}
    model: {{ .Values.pair.critic.model | quote }}
    protocol: {{ include "irlops.criticProtocol" . }}
  policy_version: {{ .Values.pair.policyVersion | quote }}
  critic_version: {{ .Values.pair.criticVersion | quote }}
{{- with .Values.pair.calibration }}
  calibration:
    {{- toYaml . | nindent 4 }}
{{- end }}
{{- end -}}

{{/* Whether the gateway reads a key file: "true" or nothing. (include "irlops.hasKeyFile" .) */}}
{{- define "irlops.hasKeyFile" -}}
{{- $auth := .Values.gateway.auth -}}
{{- if and (not $auth.disabled) (or $auth.keys $auth.existingSecret (not $auth.oidc)) -}}
true
{{- end -}}
{{- end -}}

{{/* Secret with the gateway's key file. (include "irlops.keysSecret" .) */}}
{{- define "irlops.keysSecret" -}}
{{- default (printf "%s-gateway-keys" (include "irlops.fullname" .)) .Values.gateway.auth.existingSecret -}}
{{- end -}}

{{/* Whether there can be more than one gateway: "true" or nothing. (include "irlops.gatewayIsReplicated" .) */}}
{{- define "irlops.gatewayIsReplicated" -}}
{{- $auto := .Values.gateway.autoscaling -}}
{{- if gt (int (ternary $auto.maxReplicas .Values.gateway.replicas $auto.enabled)) 1 -}}
true
{{- end -}}
{{- end -}}

{{/* A name of the default runtime of a role. (include "irlops.runtime" (dict "root" . "role" "policy")) */}}
{{- define "irlops.runtime" -}}
{{- printf "%s-%s-%s" (include "irlops.fullname" .root) .role .root.Values.runtimes.default -}}
{{- end -}}

{{/* The port of a URL, 443 or 80 by its scheme when it names none; nothing for an empty URL. (include "irlops.port" "http://a:4318") */}}
{{- define "irlops.port" -}}
{{- if . -}}
{{- $host := (urlParse .).host -}}
{{- $named := regexFind ":[0-9]+$" $host | trimPrefix ":" -}}
{{- if $named -}}
{{- $named -}}
{{- else if hasPrefix "http://" . -}}
80
{{- else if contains "redis" . -}}
6379
{{- else -}}
443
{{- end -}}
{{- end -}}
{{- end -}}

{{/* An egress rule to DNS, wherever it runs (node-local caches are no pods). (include "irlops.dnsEgress" .) */}}
{{- define "irlops.dnsEgress" -}}
- ports:
{{- range .Values.networkPolicy.dnsPorts }}
    - {port: {{ int . }}, protocol: UDP}
    - {port: {{ int . }}, protocol: TCP}
{{- end }}
{{- end -}}

{{/* An egress rule to ports anywhere, or nothing. (include "irlops.portsEgress" (list 443 5432)) */}}
{{- define "irlops.portsEgress" -}}
{{- with . }}
- ports:
{{- range uniq . }}
    - {port: {{ int . }}, protocol: TCP}
{{- end }}
{{- end }}
{{- end -}}

{{/*
What an Ingress or HTTPRoute lets in, as a dict of paths by kind: the API, its documents and the playground. Not /metrics and /readyz,
which ask for no key. Eight at most: older Gateway APIs take no more matches. (include "irlops.publicPaths" . | fromYaml)
*/}}
{{- define "irlops.publicPaths" -}}
exact: [/, /docs, /openapi.json, /healthz, /favicon.svg, /licenses.txt]
prefix: [/v1, /assets]
{{- end -}}
