{{- define "tributary.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "tributary.selector" -}}
app.kubernetes.io/name: tributary-cloud
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "tributary.labels" -}}
{{ include "tributary.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "tributary.account" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "tributary.name" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end -}}

{{- define "tributary.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "tributary.secret" -}}
{{ .Values.clusterSecret.existing | default (printf "%s-cluster" (include "tributary.name" .)) }}
{{- end -}}

{{- /* What cannot work is refused with the value's name. */ -}}
{{- define "tributary.check" -}}
{{- if not (regexMatch "^(s3|gs|az)://[^/]+" .Values.data) -}}
{{- fail (printf "`data` = %q: say where the data is, as s3://bucket/prefix, gs://bucket/prefix or az://container/prefix" .Values.data) -}}
{{- end -}}
{{- if not .Values.plaintextInsideTheCluster -}}
{{- fail "`plaintextInsideTheCluster` is false: nobody could connect. Kafka, AMQP and MQTT clients inside the cluster come without TLS and without a password; set it to true if only trusted pods reach the ports (`networkPolicy.from`)" -}}
{{- end -}}
{{- if and .Values.edges.enabled (not .Values.edges.tlsSecret) -}}
{{- fail "`edges.enabled` needs `edges.tlsSecret`: a Secret with tls.crt, tls.key and ca.crt" -}}
{{- end -}}
{{- end -}}

{{- define "tributary.pod" -}}
serviceAccountName: {{ include "tributary.account" . }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{- define "tributary.container" -}}
image: {{ include "tributary.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- with .Values.storeSecret }}
envFrom:
  - secretRef:
      name: {{ . }}
{{- end }}
{{- end -}}
